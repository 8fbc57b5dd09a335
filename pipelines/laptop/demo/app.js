// Recommendations in a browser, with only Supabase's publishable key and the signed-in user's token.
// Copy the first part, the calls to Supabase, into a product; the second part is this page.

// With a bundler: import { createClient } from '@supabase/supabase-js'
const { createClient } = window.supabase

const RECOMMENDED = 10 // movies
const SHOWN = 8 // movies of a history, or to rate, before "show more"

// In a product these are two constants: your project's URL and its publishable key, which is not a secret.
const config = await (await fetch('config.json')).json()
let user = config.users[0] // the signed-in user: { name, user_id, token, is_new }
const { scale } = config // lowest and highest rating, { min, max }; null without ratings (clicks, plays, purchases)

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
  const { data, count, error } = await supabase
    .from('ratings')
    .select('movie_id, rating, movies(title, genres)', { count: 'exact' }) // the movie comes through the foreign key
    .order('rating', { ascending: false })
    .order('rated_at', { ascending: false })
  if (error) throw new Error(error.message)
  return { count, rated: data.map(({ movies, ...rating }) => ({ ...rating, ...movies })) }
}

// For a user that the published model knows. without_ids: movies that the user does not want to see.
const recommendForMe = async (without_ids) =>
  withTitles(await rowsOf(supabase.rpc('recommend_for_me', { k: RECOMMENDED, exclude_rated: true, without_ids })))

// For a user that the model does not know: ratings is [{ movie_id, rating }, …]; [] returns what most people like.
const recommendFromRatings = async (ratings, without_ids) =>
  withTitles(await rowsOf(supabase.rpc('recommend_from_ratings', { ratings, k: RECOMMENDED, without_ids })))

const similarMovies = async (movie) =>
  withTitles(await rowsOf(supabase.rpc('similar_movies', { for_movie: movie.movie_id, k: 6 })))

const popularMovies = async (skip) => withTitles(await rowsOf(supabase.rpc('popular_movies', { k: SHOWN, skip })))

// % and _ are wildcards of ilike.
const search = (text) =>
  rowsOf(
    supabase
      .from('movies')
      .select('movie_id, title, genres')
      .ilike('title', `%${text.replaceAll(/[\\%_]/g, '\\$&')}%`)
      .order('title')
      .limit(RECOMMENDED)
  )

// Recommendations are movie ids; titles and genres come from the app's own table. `because` is a movie, too.
async function withTitles(rows) {
  const ids = [...new Set(rows.flatMap((row) => [row.movie_id, row.because ?? row.movie_id]))]
  const found = await rowsOf(supabase.from('movies').select('movie_id, title, genres').in('movie_id', ids))
  const movies = new Map(found.map((movie) => [movie.movie_id, movie]))
  const movie = (id) => movies.get(id) ?? { title: `Movie ${id}`, genres: [] }
  return rows.map((row) => ({
    ...row,
    ...movie(row.movie_id),
    because: row.because == null ? null : movie(row.because).title
  }))
}

// Part 2: the page.

const byId = (id) => document.getElementById(id)
const newRatings = new Map() // ratings since the sign-in, by movie id
const hidden = new Set() // movies that the user does not want to see
let ownRatings = [] // the user's stored ratings, best first, as many as the API returns
let ownCount = 0 // all of them
const requests = new Map() // number of the latest request of each list, so that an earlier response is ignored

// Runs `request` and passes its result to `show`, unless the list was requested again or another user signed in
// meanwhile; `show` returns a sentence for the status, or none. An error is shown as a sentence.
async function load(list, request, show) {
  const turn = (requests.get(list) ?? 0) + 1
  const requestedBy = user
  const isLate = () => requests.get(list) !== turn || user !== requestedBy
  requests.set(list, turn)
  list.setAttribute('aria-busy', 'true')
  if (!list.children.length && list.tagName === 'OL') list.append(...skeletons())
  try {
    const result = await request()
    if (!isLate()) {
      removeSkeletons(list)
      const sentence = show(result)
      if (sentence) say(sentence)
    }
  } catch (error) {
    if (!isLate()) {
      removeSkeletons(list)
      sayError(error)
    }
  } finally {
    if (requests.get(list) === turn) list.removeAttribute('aria-busy')
  }
}

// What stands in an empty list until its movies are there.
const skeletons = () =>
  Array.from({ length: RECOMMENDED }, () =>
    element('li', { className: 'skeleton', ariaHidden: 'true' }, element('span', { className: 'cover' }), element('span'))
  )

const removeSkeletons = (list) => list.querySelectorAll('.skeleton').forEach((skeleton) => skeleton.remove())

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
  byId('recommended').append(...skeletons())
  byId('history-section').hidden = user.is_new
  byId('rate-section').hidden = !user.is_new
  byId('rate-note').textContent = scale ? '' : 'Choose what you like.'
  showFound()
  if (user.is_new) {
    showMoviesToRate()
    recommend()
  } else {
    showKnownUser()
  }
}

function showKnownUser() {
  load(byId('history'), myRatings, ({ rated, count }) => {
    ownRatings = rated
    ownCount = count
    byId('history-note').textContent = scale ? `By ${user.name}, best first.` : `By ${user.name}, newest first.`
    showHistory(SHOWN)
    recommend()
    return 'Loading …'
  })
}

function showHistory(count) {
  const rows = ownRatings.filter(({ movie_id }) => !hidden.has(movie_id))
  byId('history').replaceChildren(...rows.slice(0, count).map((movie) => row(movie, ...given(movie))))
  byId('history-more').hidden = rows.length <= count
  byId('history-more').textContent = `Show all ${rows.length}`
}

// The list of the signed-in user. With ratings other than the database's, the list of a new user with all of them: the
// scores are the same sum.
function recommend() {
  const stored = ownRatings.filter(({ movie_id }) => !hidden.has(movie_id) && !newRatings.has(movie_id))
  const ratings = [...stored.map(({ movie_id, rating }) => [movie_id, rating]), ...newRatings]
    .filter(([movie_id]) => !hidden.has(movie_id))
    .slice(-1000) // the most that the function takes
    .map(([movie_id, rating]) => ({ movie_id, rating }))
  const known = !user.is_new && stored.length === ownRatings.length && !newRatings.size
  const whose = ratings.length ? `For ${user.name}.` : 'What most people like.'
  byId('recommended-note').textContent = scale ? `${whose} Golden stars predict a rating, grey ones take yours.` : whose
  byId('show-hidden').hidden = !hidden.size
  load(
    byId('recommended'),
    () => (known ? recommendForMe([...hidden]) : recommendFromRatings(ratings, [...hidden])),
    (best) => {
      byId('recommended').replaceChildren(...best.map(tile))
      const one = scale ? 'rating' : 'choice'
      const count = known ? ownCount : ratings.length
      const rated = `${count} ${count === 1 ? one : `${one}s`}`
      return `${best.length} recommendations from ${rated} of ${user.name}.`
    }
  )
}

function rate(movie, rating) {
  newRatings.set(movie.movie_id, rating)
  recommend()
}

// A hidden movie is in no list, and its rating does not count.
function hide(movie, place) {
  hidden.add(movie.movie_id)
  const next = place.nextElementSibling ?? place.previousElementSibling
  const list = place.parentElement
  place.remove()
  if (list.id === 'recommended') byId('recommended-heading').focus() // the list is loaded again
  else (next?.querySelector('button') ?? byId('recommended-heading')).focus()
  recommend()
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
      byId('found').replaceChildren(...found.filter(({ movie_id }) => !hidden.has(movie_id)).map(tile))
      return found.length ? `${found.length} ${found.length === 1 ? 'title' : 'titles'} with “${text}”.` : `No title has “${text}” in it.`
    }
  )
}

function showMoviesToRate() {
  const list = byId('rate')
  const isFirst = !list.children.length // the status speaks of the recommendations then
  load(
    list,
    () => popularMovies(list.querySelectorAll('li:not(.skeleton)').length),
    (more) => {
      list.append(...more.map((movie) => row(movie)))
      byId('rate-more').hidden = more.length < SHOWN
      return isFirst ? '' : `${list.children.length} movies to rate.`
    }
  )
}

// Five stars are five radio buttons, so that arrow keys work and a screen reader says "3 stars". Without ratings (clicks)
// it is one button.
let groups = 0 // a movie may stand in several lists
function rating(movie) {
  if (!scale) return choice(movie)
  const given = newRatings.get(movie.movie_id) ?? movie.rating
  const name = `rating-${(groups += 1)}`
  const choices = [1, 2, 3, 4, 5].map((n) => {
    const checked = given != null && Math.round(starsOf(given)) === n
    const input = element('input', { type: 'radio', name, value: n, checked })
    input.addEventListener('change', () => rate(movie, ratingOf(n)))
    return element('label', {}, input, element('span', { className: 'star' }), hiddenText(n === 1 ? '1 star' : `${n} stars`))
  })
  const legend = element('legend', { className: 'hidden-text' }, `Rate ${movie.title}`)
  return element('fieldset', {}, legend, ...choices)
}

function choice(movie) {
  const button = element('button', { type: 'button', className: 'small' }, 'I like it', hiddenText(` ${movie.title}`))
  button.ariaPressed = newRatings.has(movie.movie_id)
  button.addEventListener('click', () => {
    const chosen = newRatings.delete(movie.movie_id) ? false : newRatings.set(movie.movie_id, null)
    button.ariaPressed = Boolean(chosen)
    recommend()
  })
  return button
}

// Ratings from 0 or 1 to 5 are stars as they are; other ranges are divided into five.
const isStars = scale && scale.max === 5 && scale.min >= 0 && scale.min <= 1
const starsOf = (rating) => (isStars ? rating : 1 + (4 * (rating - scale.min)) / (scale.max - scale.min))
const ratingOf = (stars) => (isStars ? stars : scale.min + ((scale.max - scale.min) * (stars - 1)) / 4)

// A movie as a tile: generated cover, title, genres, prediction, reason, rating and a button that hides it.
function tile(movie) {
  const because = movie.because ? [element('p', { className: 'because' }, `Because you rated ${movie.because}`)] : []
  if (!scale && movie.because) because[0].textContent = `Because you chose ${movie.because}`
  const predicted = movie.predicted_rating == null ? [] : [line(...stars(movie.predicted_rating, 2))]
  const place = element('li', {}, cover(movie), titleButton(movie), ...genres(movie), ...predicted, ...because)
  place.append(actions(movie, place))
  return place
}

const actions = (movie, place) => element('div', { className: 'actions' }, rating(movie), hideButton(movie, place))

function hideButton(movie, place) {
  const button = element('button', { type: 'button', className: 'small' }, 'Hide', hiddenText(` ${movie.title}`))
  button.addEventListener('click', () => hide(movie, place))
  return button
}

const genres = ({ genres }) => (genres?.length ? [element('p', { className: 'genres' }, genres.slice(0, 3).join(' · '))] : [])

// The same colours for the same title, and the first letters of its words.
function cover({ title }) {
  const code = [...title].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 9973, 7)
  const words = title.replace(/\(\d{4}\)$/, '').split(/\s+/).filter((word) => !/^(the|a|an|of|and)$/i.test(word))
  const letters = words.flatMap((word) => word.match(/[\p{L}\p{N}]/u) ?? []).slice(0, 3).join('')
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
      const shown = found.filter(({ movie_id }) => !hidden.has(movie_id))
      byId('similar-list').replaceChildren(...shown.map((other) => row(other, number(other.similarity, 'similarity'))))
      return `${shown.length} movies similar to ${movie.title}.`
    }
  )
}

// A row of a list: the title, a button that shows similar movies, genres, figures, rating and a button that hides it.
function row(movie, ...figures) {
  const name = element('div', { className: 'name' }, titleButton(movie), ...genres(movie))
  const place = element('li', {}, name, ...figures)
  place.append(actions(movie, place))
  return place
}

// The rating that the user has given.
const given = ({ rating }) => (scale && rating != null ? [number(rating, UNIT, isStars || scale.max < 20 ? 1 : 0)] : [])

function titleButton(movie) {
  const [, name, year] = /^(.*?)( \(\d{4}\))?$/s.exec(movie.title)
  const button = element('button', { type: 'button', className: 'title' }, name)
  if (year) button.append(element('span', { className: 'year' }, year))
  button.addEventListener('click', () => showSimilar(movie))
  return button
}

const UNIT = isStars ? 'of 5 stars' : `from ${scale?.min} to ${scale?.max}`
const line = (...parts) => element('p', { className: 'line' }, ...parts)
const hiddenText = (text) => element('span', { className: 'hidden-text' }, text)

function stars(rating, digits) {
  const bar = element('span', { className: 'stars', ariaHidden: 'true' })
  bar.style.setProperty('--rating', starsOf(rating))
  return [bar, number(rating, UNIT, digits)]
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
byId('history-more').addEventListener('click', () => {
  const before = byId('history').children.length
  showHistory(ownRatings.length)
  byId('history').children[before].querySelector('button').focus()
})
let typing
byId('search').addEventListener('input', () => {
  clearTimeout(typing)
  typing = setTimeout(showFound, 200)
})
byId('try-again').addEventListener('click', () => signIn(user))
byId('show-hidden').addEventListener('click', () => {
  hidden.clear()
  if (!user.is_new) showHistory(SHOWN)
  recommend()
})
byId('rate-more').addEventListener('click', showMoviesToRate)
byId('rate-again').addEventListener('click', () => signIn(user))
byId('similar-close').addEventListener('click', () => byId('similar').close())

byId('user').disabled = false
signIn(user)
