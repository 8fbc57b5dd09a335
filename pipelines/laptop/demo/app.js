// Recommendations in a browser, with only Supabase's publishable key and the signed-in user's token.
// Copy the first part, the calls to Supabase, into a product; the second part is this page.

// With a bundler: import { createClient } from '@supabase/supabase-js'
const { createClient } = window.supabase

const RECOMMENDED = 10 // movies
const SHOWN = 8 // movies of a history, or to rate, before "show more"

// In a product these are two constants: your project's URL and its publishable key, which is not a secret.
const config = await (await fetch('config.json')).json()
let user = config.users[0] // the signed-in user: { name, user_id, token, is_new }

// Part 1: calls to Supabase.

// The database reads the user from the token. In a product Supabase Auth keeps the token: leave out `accessToken` and
// sign in with `await supabase.auth.signInWithPassword({ email, password })`.
const supabase = createClient(config.url, config.key, { accessToken: async () => user.token })

// A supabase-js call returns { data, error } and never throws: without this check an error looks like no rows.
async function rowsOf(call) {
  const { data, error } = await call
  if (error) throw new Error(error.message)
  return data
}

// The table's policy returns only the user's own rows, so no filter is needed here. The API returns at most 1000 rows.
async function myRatings() {
  const rows = await rowsOf(
    supabase
      .from('ratings')
      .select('movie_id, rating, movies(title)') // the title comes through the foreign key
      .order('rating', { ascending: false })
      .order('rated_at', { ascending: false })
  )
  return rows.map(({ movie_id, rating, movies }) => ({ movie_id, rating, title: movies.title }))
}

// For a user that the published model knows.
const recommendForMe = async () =>
  withTitles(await rowsOf(supabase.rpc('recommend_for_me', { k: RECOMMENDED, exclude_rated: true })))

// For a user that the model does not know: ratings is [{ movie_id, rating }, …]; [] returns what most people like.
const recommendFromRatings = async (ratings) =>
  withTitles(await rowsOf(supabase.rpc('recommend_from_ratings', { ratings, k: RECOMMENDED })))

const similarMovies = async (movie) =>
  withTitles(await rowsOf(supabase.rpc('similar_movies', { for_movie: movie.movie_id, k: 6 })))

const movies = (from, count) =>
  rowsOf(supabase.from('movies').select('movie_id, title').order('movie_id').range(from, from + count - 1))

// Recommendations are movie ids; the titles come from the app's own table.
async function withTitles(rows) {
  const ids = rows.map((row) => row.movie_id)
  const found = await rowsOf(supabase.from('movies').select('movie_id, title').in('movie_id', ids))
  const titles = new Map(found.map((movie) => [movie.movie_id, movie.title]))
  return rows.map((row) => ({ ...row, title: titles.get(row.movie_id) ?? `Movie ${row.movie_id}` }))
}

// Part 2: the page.

const byId = (id) => document.getElementById(id)
const newRatings = new Map() // the new user's ratings, by movie id
const requests = new Map() // number of the latest request of each list, so that an earlier response is ignored

// Runs `request` and passes its result to `show`, unless the list was requested again or another user signed in
// meanwhile. An error is shown as a sentence.
async function load(list, request, show) {
  const turn = (requests.get(list) ?? 0) + 1
  const requestedBy = user
  const isLate = () => requests.get(list) !== turn || user !== requestedBy
  requests.set(list, turn)
  list.setAttribute('aria-busy', 'true')
  try {
    const result = await request()
    if (!isLate()) say(show(result))
  } catch (error) {
    if (!isLate()) sayError(error)
  } finally {
    if (requests.get(list) === turn) list.removeAttribute('aria-busy')
  }
}

function say(sentence, isError = false) {
  byId('status').textContent = sentence
  byId('status').classList.toggle('error', isError)
}

function sayError({ message }) {
  byId('similar').close() // the dialog would cover the sentence
  say(message.includes('JWT expired') ? 'The sign-in has expired: load the page again.' : `Sorry: ${message}`, true)
}

function signIn(newUser) {
  user = newUser
  newRatings.clear()
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
  byId('recommended-note').textContent = `With the predicted rating by ${user.name}.`
  load(
    byId('recommended'),
    () => Promise.all([recommendForMe(), myRatings()]),
    ([best, rated]) => {
      showRecommended(best)
      byId('history-note').textContent = `By user ${user.user_id}, best first.`
      const rows = rated.map((movie) => row(movie, ...stars(movie.rating)))
      rows.slice(SHOWN).forEach((line) => (line.hidden = true))
      byId('history').replaceChildren(...rows)
      byId('history-more').hidden = rows.length <= SHOWN
      byId('history-more').textContent = `Show all ${rows.length}`
      return `${best.length} recommendations and ${rated.length} ratings of ${user.name}.`
    }
  )
}

function showRecommended(best) {
  byId('recommended').replaceChildren(...best.map((movie) => row(movie, ...predicted(movie))))
}

// A run of clicks predicts no rating.
function predicted(movie) {
  return movie.predicted_rating === null ? [] : stars(movie.predicted_rating, 2)
}

function recommendToNewUser() {
  const ratings = [...newRatings].map(([movie_id, rating]) => ({ movie_id, rating }))
  byId('recommended-note').textContent = ratings.length ? 'From your ratings alone.' : 'What most people like.'
  load(
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
  load(
    list,
    () => movies(list.children.length, SHOWN),
    (more) => {
      list.append(...more.map(rateable))
      byId('rate-more').hidden = more.length < SHOWN
      return `${list.children.length} movies to rate.`
    }
  )
}

// Five stars are five radio buttons, so that arrow keys work and a screen reader says "3 stars".
function rateable(movie) {
  const choices = [1, 2, 3, 4, 5].map((n) => {
    const input = element('input', { type: 'radio', name: `movie-${movie.movie_id}`, value: n })
    input.addEventListener('change', () => {
      newRatings.set(movie.movie_id, n)
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
  load(
    byId('similar-list'),
    () => similarMovies(movie),
    (found) => {
      byId('similar-list').replaceChildren(...found.map((other) => row(other, number(other.similarity, 'similarity'))))
      return `${found.length} movies similar to ${movie.title}.`
    }
  )
}

// A row of a list: the title, a button that shows similar movies, and figures.
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

// Text is added as text and never as HTML, because a title may hold markup.
function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}

byId('user').append(...config.users.map(({ name }, i) => element('option', { value: i }, name)))
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
