// Owns the page: the conversation as it is seen, and what its buttons do. Text is only ever text (textContent).
import * as api from "./api.js";
import { load, save, key } from "./store.js";
import { WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);
const state = load();
const FIELDS = ["system", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed", "theme", "language"];
let about = { id: "", max_model_len: 0, reads_system_messages: true };
let abort = null; // of the answer that is being written

const words = () => WORDS[state.settings.language] || WORDS.en;
const chat = () => state.chats[state.at];

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function button(text, action) {
  const element = make("button", "", text);
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

function keep() {
  if (!save(state)) complain(words().full);
}

function tell(text) { $("state").textContent = text; }

function complain(text) {
  $("error").textContent = text || "";
  $("error").hidden = !text;
}

// The conversation

function showAll() {
  const log = $("log");
  log.replaceChildren();
  const { messages, forgotten = 0 } = chat();
  messages.forEach((message, i) => {
    if (i && i === forgotten) log.append(make("p", "divider", words().forgotten));
    log.append(shown(message, i));
  });
  log.scrollTop = log.scrollHeight;
  showChats();
}

function shown(message, i) {
  const box = make("article", `message ${message.role === "user" ? "user" : "assistant"}`);
  if (i < (chat().forgotten || 0)) box.classList.add("forgotten");
  box.append(make("p", "who", message.role === "user" ? words().you : words().assistant));
  const text = make("div", "text");
  fill(text, message);
  box.append(text);
  if (message.note) box.append(make("p", "note", words()[message.note]));
  const buttons = make("div", "buttons");
  if (message.role === "user") buttons.append(button(words().edit, () => edit(box, text, buttons, i)));
  else if (i === chat().messages.length - 1) buttons.append(button(words().retry, () => retry()));
  buttons.append(button(words().copy, () => navigator.clipboard?.writeText(message.content)));
  box.append(buttons);
  return box;
}

function fill(text, message) {
  text.replaceChildren();
  const tokens = state.settings.probabilities ? message.tokens : null;
  if (!tokens) {
    text.textContent = message.content || (message.role === "assistant" ? words().empty : "");
    return;
  }
  text.tabIndex = 0;
  tokens.forEach((token) => text.append(tokenElement(token)));
  text.addEventListener("keydown", moveAmongTokens);
  text.addEventListener("blur", hideTip);
}

function tokenElement(token) {
  const p = Math.exp(token.logprob);
  const level = p < 0.1 ? 0 : p < 0.3 ? 1 : p < 0.6 ? 2 : p < 0.9 ? 3 : 4;
  const element = make("span", `token p${level}`, token.text);
  element.rustgpt = token;
  element.addEventListener("mouseenter", () => showTip(element));
  element.addEventListener("mouseleave", hideTip);
  return element;
}

function moveAmongTokens(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = [...event.currentTarget.children];
  const at = all.findIndex((one) => one.classList.contains("at"));
  const next = all[Math.min(all.length - 1, Math.max(0, at + step))];
  if (next) { hideTip(); next.classList.add("at"); showTip(next); }
}

function showTip(element) {
  const { token, logprob, top } = element.rustgpt;
  const table = make("table");
  const rows = top.some((one) => one.token === token) ? top : [{ token, logprob }, ...top];
  for (const one of rows) {
    const row = make("tr", one.token === token ? "made" : "");
    row.append(make("td", "", one.token), make("td", "", `${(100 * Math.exp(one.logprob)).toFixed(1)} %`));
    table.append(row);
  }
  const tip = $("tip");
  tip.replaceChildren(table);
  tip.hidden = false;
  const at = element.getBoundingClientRect();
  const top_ = at.bottom + tip.offsetHeight + 8 > innerHeight ? at.top - tip.offsetHeight - 6 : at.bottom + 6;
  tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, top_)}px`;
}

function hideTip() {
  $("tip").hidden = true;
  document.querySelectorAll(".token.at").forEach((one) => one.classList.remove("at"));
}

function edit(box, text, buttons, i) {
  if (abort) return;
  const field = make("textarea");
  field.value = chat().messages[i].content;
  field.setAttribute("aria-label", words().question);
  const send = () => {
    if (!field.value.trim()) return;
    chat().messages.splice(i);
    ask(field.value.trim());
  };
  field.addEventListener("keydown", (event) => {
    if (isEnter(event)) { event.preventDefault(); send(); }
    if (event.key === "Escape") showAll();
  });
  text.replaceChildren(field);
  buttons.replaceChildren(button(words().save, send), button(words().cancel, showAll));
  field.focus();
}

function retry() {
  if (abort) return;
  const { messages } = chat();
  while (messages.length && messages.at(-1).role !== "user") messages.pop();
  if (messages.length) ask(messages.pop().content);
}

// Asking

const isEnter = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

function settings() {
  const found = {};
  for (const name of ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"]) {
    const value = state.settings[name];
    if (value !== "" && Number.isFinite(Number(value))) found[name] = Number(value);
  }
  if (state.settings.probabilities) Object.assign(found, { logprobs: true, top_logprobs: 5 });
  return found;
}

// Drops the oldest turns, in sight, until the rest fits; returns the messages that are sent.
async function fitting() {
  const { messages } = chat();
  const system = state.settings.system.trim() ? [{ role: "system", content: state.settings.system.trim() }] : [];
  const room = Math.min(Number(state.settings.max_tokens) || Infinity, Math.floor(about.max_model_len / 3));
  let first = 0;
  for (;;) {
    const sent = [...system, ...messages.slice(first).map(({ role, content }) => ({ role, content }))];
    const next = messages.findIndex((message, i) => i > first && message.role === "user");
    const length = await countOf(sent);
    if (length <= about.max_model_len - room || next < 0) {
      chat().forgotten = first;
      if (length >= about.max_model_len) throw new api.Refused(400, { code: "context_length_exceeded" });
      return sent;
    }
    first = next;
  }
}

// The number of tokens, or Infinity for more than the server counts.
async function countOf(sent) {
  try { return await api.count(key(), sent); } catch (error) {
    if (error.status === 400 || error.status === 413) return Infinity;
    throw error;
  }
}

async function ask(question) {
  if (abort) return;
  abort = new AbortController();
  complain("");
  chat().messages.push({ role: "user", content: question });
  const message = { role: "assistant", content: "" };
  busy(true);
  try {
    const sent = await fitting();
    chat().messages.push(message);
    showAll();
    await write(message, sent);
  } catch (error) {
    failed(error, message);
  }
  abort = null;
  if (chat().messages.at(-1) === message && !message.content && !message.note) chat().messages.pop();
  busy(false);
  keep();
  showAll();
  $("question").focus();
}

async function write(message, sent) {
  const text = $("log").lastElementChild.querySelector(".text");
  text.textContent = "";
  text.classList.add("busy");
  $("log").setAttribute("aria-busy", "true");
  tell(words().writing);
  const body = { model: about.id, messages: sent, ...settings() };
  const chunks = api.stream(key(), body, abort.signal, (headers) => {
    if (headers.get("X-RustGPT-Notice")) message.note = "leftOut";
  });
  for await (const { choices: [choice] } of chunks) {
    if (!choice) continue;
    if (choice.finish_reason === "length") message.note = "cut";
    append(text, message, choice);
  }
  if (!message.content) message.note ||= "done";
  tell(words().done);
}

function append(text, message, { delta, logprobs }) {
  const piece = delta.content || "";
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  message.content += piece;
  const told = logprobs?.content?.[0];
  if (told) {
    const top = told.top_logprobs.map(({ token, logprob }) => ({ token, logprob }));
    const token = { text: piece, token: told.token, logprob: told.logprob, top };
    (message.tokens ||= []).push(token);
    text.append(tokenElement(token));
  } else if (piece) {
    message.tokens?.push({ text: piece, token: piece, logprob: 0, top: [] });
    text.append(piece);
  }
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function failed(error, message) {
  const { messages } = chat();
  if (error.name === "AbortError") {
    message.note = "stopped";
    tell(words().stopped);
    if (messages.at(-1) !== message) $("question").value = messages.pop()?.content || "";
    return;
  }
  tell("");
  if (!message.content) {
    // The question goes back to where it can be changed.
    if (messages.at(-1) === message) messages.pop();
    $("question").value = messages.pop()?.content || "";
    grow();
  }
  const text = words();
  if (error.status === 401) { complain(text.wantsKey); openSettings(true); $("key").focus(); }
  else if (error.code === "context_length_exceeded") complain(text.tooLong);
  else if (error.status === 429) complain(text.busy);
  else if (error.status === 503) complain(text.loading);
  else complain(error instanceof api.Refused ? error.message : text.offline);
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  for (const id of ["new", "delete", "chats"]) $(id).disabled = is;
  if (!is) $("log").removeAttribute("aria-busy");
}

function sendQuestion() {
  const question = $("question").value.trim();
  if (!question || abort) return;
  $("question").value = "";
  grow();
  ask(question);
}

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

// Chats and settings

function showChats() {
  const list = $("chats");
  list.replaceChildren(...state.chats.map(({ messages }, i) => {
    const option = make("option", "", messages[0]?.content.slice(0, 40) || words().untitled);
    option.value = String(i);
    return option;
  }));
  list.value = String(state.at);
}

function go(i) {
  state.at = i;
  keep();
  complain("");
  tell("");
  showAll();
}

function newChat() {
  if (chat().messages.length) state.chats.push({ messages: [] });
  go(state.chats.length - 1);
  $("question").focus();
}

function deleteChat() {
  state.chats.splice(state.at, 1);
  if (!state.chats.length) state.chats.push({ messages: [] });
  go(Math.min(state.at, state.chats.length - 1));
}

function openSettings(is) {
  $("settings").hidden = !is;
  $("toggle").setAttribute("aria-expanded", String(is));
}

function applySettings() {
  const text = words();
  document.documentElement.lang = state.settings.language;
  document.documentElement.dataset.theme = state.settings.theme;
  document.querySelectorAll("[data-text]").forEach((one) => { one.textContent = text[one.dataset.text]; });
  document.querySelectorAll("[data-label]").forEach((one) => { one.setAttribute("aria-label", text[one.dataset.label]); });
  document.querySelectorAll("[data-hint]").forEach((one) => { one.placeholder = text[one.dataset.hint]; });
  $("noSystem").hidden = about.reads_system_messages;
  if (!abort) showAll();
}

function begin() {
  for (const name of FIELDS) {
    $(name).value = state.settings[name];
    $(name).addEventListener("input", () => { state.settings[name] = $(name).value; keep(); applySettings(); });
  }
  $("probabilities").checked = state.settings.probabilities;
  $("probabilities").addEventListener("change", (event) => {
    state.settings.probabilities = event.target.checked; keep(); applySettings();
  });
  $("key").value = key();
  $("key").addEventListener("change", (event) => { key(event.target.value.trim()); meet(); });
  $("toggle").addEventListener("click", () => openSettings($("settings").hidden));
  $("new").addEventListener("click", newChat);
  $("delete").addEventListener("click", deleteChat);
  $("chats").addEventListener("change", (event) => go(Number(event.target.value)));
  $("send").addEventListener("click", sendQuestion);
  $("stop").addEventListener("click", () => abort?.abort());
  $("question").addEventListener("input", grow);
  $("question").addEventListener("keydown", (event) => {
    if (isEnter(event)) { event.preventDefault(); sendQuestion(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (abort) abort.abort();
    else if (!$("settings").hidden) { openSettings(false); $("toggle").focus(); }
  });
  applySettings();
  meet();
}

// Waits until the model is there, and asks what it is.
async function meet() {
  try {
    while (!(await api.isReady())) {
      tell(words().loading);
      await new Promise((done) => setTimeout(done, 500));
    }
    about = await api.model(key());
    $("model").textContent = about.id;
    document.title = `${about.id} – rustgpt`;
    tell("");
    complain("");
    applySettings();
  } catch (error) {
    failedToMeet(error);
  }
}

function failedToMeet(error) {
  tell("");
  complain(error.status === 401 ? words().wantsKey : words().offline);
  if (error.status === 401) { openSettings(true); $("key").focus(); }
}

begin();
