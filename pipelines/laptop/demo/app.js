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

// For a user that the published model knows. without_ids: movies that the user does not want to see.
const recommendForMe = async (without_ids) =>
  withTitles(await rowsOf(supabase.rpc('recommend_for_me', { k: RECOMMENDED, exclude_rated: true, without_ids })))

// For a user that the model does not know: ratings is [{ movie_id, rating }, …]; [] returns what most people like.
const recommendFromRatings = async (ratings, without_ids) =>
  withTitles(await rowsOf(supabase.rpc('recommend_from_ratings', { ratings, k: RECOMMENDED, without_ids })))

const similarMovies = async (movie) =>
  withTitles(await rowsOf(supabase.rpc('similar_movies', { for_movie: movie.movie_id, k: 6 })))

const movies = (from, count) =>
  rowsOf(supabase.from('movies').select('movie_id, title').order('movie_id').range(from, from + count - 1))

// % and _ are wildcards of ilike.
const search = (text) =>
  rowsOf(
    supabase
      .from('movies')
      .select('movie_id, title')
      .ilike('title', `%${text.replaceAll(/[\\%_]/g, '\\$&')}%`)
      .order('title')
      .limit(RECOMMENDED)
  )

// Recommendations are movie ids; the titles come from the app's own table. `because` is a movie, too.
async function withTitles(rows) {
  const ids = [...new Set(rows.flatMap((row) => [row.movie_id, row.because ?? row.movie_id]))]
  const found = await rowsOf(supabase.from('movies').select('movie_id, title').in('movie_id', ids))
  const titles = new Map(found.map((movie) => [movie.movie_id, movie.title]))
  const title = (id) => titles.get(id) ?? `Movie ${id}`
  return rows.map((row) => ({
    ...row,
    title: title(row.movie_id),
    because: row.because == null ? null : title(row.because)
  }))
}

// Part 2: the page.

const byId = (id) => document.getElementById(id)
const newRatings = new Map() // ratings since the sign-in, by movie id
const hidden = new Set() // movies that the user does not want to see
let ownRatings = [] // the user's stored ratings
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
  byId('try-again').hidden = true
}

// What browsers say when nobody listens at the address.
const NO_SERVER = /Failed to fetch|NetworkError|Load failed/

function sayError({ message }) {
  byId('similar').close() // the dialog would cover the sentence
  if (NO_SERVER.test(message)) {
    say('The server is not running.', true)
    byId('try-again').hidden = false
  } else {
    say(message.includes('JWT expired') ? 'The sign-in has expired: load the page again.' : `Sorry: ${message}`, true)
  }
}

function signIn(newUser) {
  user = newUser
  newRatings.clear()
  hidden.clear()
  ownRatings = []
  say('Loading …')
  for (const id of ['recommended', 'history', 'rate']) byId(id).replaceChildren()
  byId('history-section').hidden = user.is_new
  byId('rate-section').hidden = !user.is_new
  showFound()
  if (user.is_new) {
    showMoviesToRate()
    recommend()
  } else {
    showKnownUser()
  }
}

function showKnownUser() {
  load(byId('history'), myRatings, (rated) => {
    ownRatings = rated
    byId('history-note').textContent = `By user ${user.user_id}, best first.`
    const rows = rated.map((movie) => row(movie, ...stars(movie.rating)))
    rows.slice(SHOWN).forEach((line) => (line.hidden = true))
    byId('history').replaceChildren(...rows)
    byId('history-more').hidden = rows.length <= SHOWN
    byId('history-more').textContent = `Show all ${rows.length}`
    recommend()
    return 'Loading …'
  })
}

// The list of the signed-in user. With a rating that the database does not have, the list of a new user with all of
// them: the scores are the same sum.
function recommend() {
  const given = [...newRatings].map(([movie_id, rating]) => ({ movie_id, rating }))
  const ratings = [...ownRatings.map(({ movie_id, rating }) => ({ movie_id, rating })), ...given]
  const known = !user.is_new && !given.length
  byId('recommended-note').textContent = ratings.length ? `For ${user.name}.` : 'What most people like.'
  byId('show-hidden').hidden = !hidden.size
  load(
    byId('recommended'),
    () => (known ? recommendForMe([...hidden]) : recommendFromRatings(ratings, [...hidden])),
    (best) => {
      byId('recommended').replaceChildren(...best.map(tile))
      const rated = `${ratings.length} ${ratings.length === 1 ? 'rating' : 'ratings'}`
      return `${best.length} recommendations from ${rated} of ${user.name}.`
    }
  )
}

function rate(movie, stars) {
  newRatings.set(movie.movie_id, stars)
  recommend()
}

function hide(movie) {
  hidden.add(movie.movie_id)
  recommend()
  byId('recommended-heading').focus() // the button is gone
}

function showFound() {
  const text = byId('search').value.trim()
  byId('found-section').hidden = !text
  byId('found').replaceChildren()
  if (!text) return
  load(
    byId('found'),
    () => search(text),
    (found) => {
      byId('found').replaceChildren(...found.map(tile))
      return found.length ? `${found.length} titles with “${text}”.` : `No title has “${text}” in it.`
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

function rateable(movie) {
  return rating(movie, element('legend', {}, movie.title))
}

// Five stars are five radio buttons, so that arrow keys work and a screen reader says "3 stars".
function rating(movie, legend) {
  const place = `${legend.className}-${movie.movie_id}` // a movie may stand in two lists
  const choices = [1, 2, 3, 4, 5].map((n) => {
    const checked = newRatings.get(movie.movie_id) === n
    const input = element('input', { type: 'radio', name: `movie-${place}`, value: n, checked })
    input.addEventListener('change', () => rate(movie, n))
    const name = element('span', { className: 'hidden-text' }, n === 1 ? '1 star' : `${n} stars`)
    return element('label', {}, input, element('span', { className: 'star' }), name)
  })
  return element('fieldset', {}, legend, ...choices)
}

// A movie as a tile: generated cover, title, prediction, reason, rating and a button that hides it.
function tile(movie) {
  const because = movie.because ? [element('p', { className: 'because' }, `Because you rated ${movie.because}`)] : []
  const predicted = movie.predicted_rating == null ? [] : [line(...stars(movie.predicted_rating, 2))]
  const away = element('button', { type: 'button', className: 'hide' }, 'Hide', hiddenText(` ${movie.title}`))
  away.addEventListener('click', () => hide(movie))
  const legend = element('legend', { className: 'hidden-text' }, `Rate ${movie.title}`)
  return element('li', {}, cover(movie), titleButton(movie), ...predicted, ...because, rating(movie, legend), away)
}

// The same colours for the same title, and the first letters of its words.
function cover({ title }) {
  const code = [...title].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 9973, 7)
  const words = title.replace(/\(\d{4}\)$/, '').split(/\s+/).filter((word) => !/^(the|a|an|of|and)$/i.test(word))
  const letters = words.slice(0, 3).map((word) => [...word][0] ?? '').join('')
  const node = element('span', { className: 'cover', ariaHidden: 'true' }, letters)
  node.style.setProperty('--hue', code % 360)
  node.style.setProperty('--turn', `${code % 180}deg`)
  return node
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
  return element('li', {}, titleButton(movie), ...figures)
}

function titleButton(movie) {
  const [, name, year] = /^(.*?)( \(\d{4}\))?$/s.exec(movie.title)
  const button = element('button', { type: 'button', className: 'title' }, name)
  if (year) button.append(element('span', { className: 'year' }, year))
  button.addEventListener('click', () => showSimilar(movie))
  return button
}

const line = (...parts) => element('p', { className: 'line' }, ...parts)
const hiddenText = (text) => element('span', { className: 'hidden-text' }, text)

function stars(rating, digits = 1) {
  const bar = element('span', { className: 'stars', ariaHidden: 'true' })
  bar.style.setProperty('--rating', rating)
  return [bar, number(rating, 'of 5 stars', digits)]
}

function number(value, unit, digits = 2) {
  return element('span', { className: 'number' }, value.toFixed(digits), hiddenText(` ${unit}`))
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
let typing
byId('search').addEventListener('input', () => {
  clearTimeout(typing)
  typing = setTimeout(showFound, 200)
})
byId('try-again').addEventListener('click', () => signIn(user))
byId('show-hidden').addEventListener('click', () => {
  hidden.clear()
  recommend()
})
byId('rate-more').addEventListener('click', showMoviesToRate)
byId('rate-again').addEventListener('click', () => signIn(user))
byId('similar-close').addEventListener('click', () => byId('similar').close())

byId('user').disabled = false
signIn(user)
