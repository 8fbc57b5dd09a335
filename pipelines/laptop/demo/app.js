// Recommendations in a browser, with Supabase's publishable key and the signed-in user's own token: nothing else.
// "Asking Supabase" is what to copy into a product; "The page" shows what came back.

// With a bundler: import { createClient } from '@supabase/supabase-js'
const { createClient } = window.supabase

const RECOMMENDED = 10 // movies
const SHOWN = 8 // movies of a history, or to rate, before "show more"

// In a product these are two constants, your project's address and its publishable key, which is no secret.
const config = await (await fetch('config.json')).json()
let user = config.users[0] // who is signed in: { name, user_id, token, is_new }

// ---- Asking Supabase ----

// The database takes from the token who asks. In a product Supabase Auth keeps the token: leave `accessToken` out and
// sign in with `await supabase.auth.signInWithPassword({ email, password })`.
const supabase = createClient(config.url, config.key, { accessToken: async () => user.token })

// A supabase-js call gives { data, error } and throws nothing: an error that is not looked at looks like no rows.
async function answer(call) {
  const { data, error } = await call
  if (error) throw new Error(error.message)
  return data
}

// The policy on the table leaves only the user's own rows, so that no filter is needed here. The API gives 1000 at most.
async function myRatings() {
  const rows = await answer(
    supabase
      .from('ratings')
      .select('movie_id, rating, movies(title)') // the title comes along the foreign key
      .order('rating', { ascending: false })
      .order('rated_at', { ascending: false })
  )
  return rows.map(({ movie_id, rating, movies }) => ({ movie_id, rating, title: movies.title }))
}

// For a user whom the published model knows.
const recommendForMe = async () =>
  withTitles(await answer(supabase.rpc('recommend_for_me', { k: RECOMMENDED, exclude_rated: true })))

// For somebody whom it does not know yet: ratings is [{ movie_id, rating }, …], and [] gets what suits most people.
const recommendFromRatings = async (ratings) =>
  withTitles(await answer(supabase.rpc('recommend_from_ratings', { ratings, k: RECOMMENDED })))

const similarMovies = async (movie) =>
  withTitles(await answer(supabase.rpc('similar_movies', { for_movie: movie.movie_id, k: 6 })))

const movies = (from, count) =>
  answer(supabase.from('movies').select('movie_id, title').order('movie_id').range(from, from + count - 1))

// Recommendations are ids; their titles are the app's own.
async function withTitles(rows) {
  const ids = rows.map((row) => row.movie_id)
  const found = await answer(supabase.from('movies').select('movie_id, title').in('movie_id', ids))
  const titles = new Map(found.map((movie) => [movie.movie_id, movie.title]))
  return rows.map((row) => ({ ...row, title: titles.get(row.movie_id) ?? `Movie ${row.movie_id}` }))
}

// ---- The page ----

const byId = (id) => document.getElementById(id)
const given = new Map() // the new user's ratings, by movie id
const asked = new Map() // how often each list was asked for; an answer to an earlier question comes too late

// Runs `work` and hands its answer to `show`, unless somebody else signed in or the list was asked for again meanwhile.
// An error becomes a sentence.
async function ask(list, work, show) {
  const turn = (asked.get(list) ?? 0) + 1
  const asking = user
  const isLate = () => asked.get(list) !== turn || user !== asking
  asked.set(list, turn)
  list.setAttribute('aria-busy', 'true')
  try {
    const found = await work()
    if (!isLate()) say(show(found))
  } catch (error) {
    if (!isLate()) sayError(error)
  } finally {
    if (asked.get(list) === turn) list.removeAttribute('aria-busy')
  }
}

function say(sentence, isError = false) {
  byId('status').textContent = sentence
  byId('status').classList.toggle('error', isError)
}

function sayError({ message }) {
  byId('similar').close() // it would cover the sentence
  say(message.includes('JWT expired') ? 'The sign-in has expired: load the page again.' : `Sorry: ${message}`, true)
}

function signIn(someone) {
  user = someone
  given.clear()
  say('Loading …')
  for (const id of ['recommended', 'history', 'rate']) byId(id).replaceChildren()
  byId('history-section').hidden = user.is_new
  byId('rate-section').hidden = !user.is_new
  if (user.is_new) {
    showMoviesToRate()
    recommendToNewUser()
  } else {
    showKnownUser()
  }
}

function showKnownUser() {
  byId('recommended-note').textContent = `With the rating that ${user.name} is predicted to give.`
  ask(
    byId('recommended'),
    () => Promise.all([recommendForMe(), myRatings()]),
    ([best, rated]) => {
      showRecommended(best)
      byId('history-note').textContent = `By user ${user.user_id}, best first.`
      const rows = rated.map((movie) => row(movie, ...stars(movie.rating)))
      rows.slice(SHOWN).forEach((one) => (one.hidden = true))
      byId('history').replaceChildren(...rows)
      byId('history-more').hidden = rows.length <= SHOWN
      byId('history-more').textContent = `Show all ${rows.length}`
      return `${best.length} recommendations and ${rated.length} ratings of ${user.name}.`
    }
  )
}

function showRecommended(best) {
  byId('recommended').replaceChildren(...best.map((movie) => row(movie, ...stars(movie.predicted_rating, 2))))
}

function recommendToNewUser() {
  const ratings = [...given].map(([movie_id, rating]) => ({ movie_id, rating }))
  byId('recommended-note').textContent = ratings.length ? 'From your ratings alone.' : 'What suits most people.'
  ask(
    byId('recommended'),
    () => recommendFromRatings(ratings),
    (best) => {
      showRecommended(best)
      return `${best.length} recommendations from ${ratings.length} ${ratings.length === 1 ? 'rating' : 'ratings'}.`
    }
  )
}

function showMoviesToRate() {
  const list = byId('rate')
  ask(
    list,
    () => movies(list.children.length, SHOWN),
    (more) => {
      list.append(...more.map(rateable))
      byId('rate-more').hidden = more.length < SHOWN
      return `${list.children.length} movies to rate.`
    }
  )
}

// Five stars are five radio buttons: arrow keys choose, a screen reader says "3 stars".
function rateable(movie) {
  const choices = [1, 2, 3, 4, 5].map((n) => {
    const input = element('input', { type: 'radio', name: `movie-${movie.movie_id}`, value: n })
    input.addEventListener('change', () => {
      given.set(movie.movie_id, n)
      recommendToNewUser()
    })
    const name = element('span', { className: 'hidden-text' }, n === 1 ? '1 star' : `${n} stars`)
    return element('label', {}, input, element('span', { className: 'star' }), name)
  })
  return element('fieldset', {}, element('legend', {}, movie.title), ...choices)
}

function showSimilar(movie) {
  const dialog = byId('similar')
  byId('similar-heading').textContent = movie.title
  byId('similar-list').replaceChildren()
  if (!dialog.open) dialog.showModal()
  byId('similar-heading').focus()
  ask(
    byId('similar-list'),
    () => similarMovies(movie),
    (found) => {
      byId('similar-list').replaceChildren(...found.map((other) => row(other, number(other.similarity, 'similarity'))))
      return `${found.length} movies similar to ${movie.title}.`
    }
  )
}

// A line of a list: the title, which shows similar movies, and figures.
function row(movie, ...figures) {
  const title = element('button', { type: 'button', className: 'title' }, movie.title)
  title.addEventListener('click', () => showSimilar(movie))
  return element('li', {}, title, ...figures)
}

function stars(rating, digits = 1) {
  const bar = element('span', { className: 'stars', ariaHidden: 'true' })
  bar.style.setProperty('--rating', rating)
  return [bar, number(rating, 'of 5 stars', digits)]
}

function number(value, unit, digits = 2) {
  const unitText = element('span', { className: 'hidden-text' }, ` ${unit}`)
  return element('span', { className: 'number' }, value.toFixed(digits), unitText)
}

// Text goes in as text, never as HTML: a title may hold anything.
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}

byId('user').append(...config.users.map((someone, i) => element('option', { value: i }, someone.name)))
byId('user').addEventListener('change', (event) => signIn(config.users[event.target.value]))
byId('history-more').addEventListener('click', (event) => {
  const first = byId('history').querySelector('[hidden]')
  for (const line of byId('history').children) line.hidden = false
  event.target.hidden = true
  first.querySelector('button').focus()
})
byId('rate-more').addEventListener('click', showMoviesToRate)
byId('rate-again').addEventListener('click', () => signIn(user))
byId('similar-close').addEventListener('click', () => byId('similar').close())

byId('user').disabled = false
signIn(user)
