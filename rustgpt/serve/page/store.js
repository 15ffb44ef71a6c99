// Owns what the browser keeps: chats and settings.
const NAME = "rustgpt";
const KEY = "rustgpt-key"; // the server's key goes with the tab

export const DEFAULTS = {
  system: "", temperature: "0", top_p: "", top_k: "", repetition_penalty: "", max_tokens: "", seed: "",
  probabilities: false, theme: "auto", language: navigator.language.startsWith("zh") ? "zh" : "en",
};

export function load() {
  let found = {};
  try { found = JSON.parse(localStorage.getItem(NAME)) || {}; } catch { /* of another version, or closed */ }
  const chats = Array.isArray(found.chats) ? found.chats.filter((chat) => Array.isArray(chat.messages)) : [];
  if (!chats.length) chats.push({ messages: [] });
  return { chats, at: Math.min(Math.max(0, found.at | 0), chats.length - 1), settings: { ...DEFAULTS, ...found.settings } };
}

// Returns whether there was room.
export function save(state) {
  try { localStorage.setItem(NAME, JSON.stringify(state)); return true; } catch { return false; }
}

export function key(value) {
  try {
    if (value !== undefined) sessionStorage.setItem(KEY, value);
    return sessionStorage.getItem(KEY) || "";
  } catch { return ""; }
}
