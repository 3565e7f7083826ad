// The switch: mode, freeze, thaw, going back to a version. All of it are routes of the admin port.

import { $, make, setText } from "/page/dom.js";
import { ask } from "/page/ask.js";

const MEANING = {
  off: "Off: the heuristic decides, the model is not asked, nothing is learned.",
  shadow: "Shadow: the heuristic decides; the model is asked and learns, so that you can compare.",
  canary: "Canary: the model decides this share of the conversations, the heuristic the others.",
  on: "On: the model decides, but where its gain is within its margin of error.",
};
let refresh = () => {};
let frozen = false;

export function start(again) {
  refresh = again;
  for (const button of $("modes").querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const word = button.dataset.mode;
      const mode = word === "canary" ? `canary:${$("percent").value}` : word;
      act("/admin/mode", { mode }, (answer) => `The mode is ${answer.mode} now.`);
    });
  }
  $("freeze").addEventListener("click", () =>
    act(`/admin/model/${frozen ? "thaw" : "freeze"}`, undefined, (answer) =>
      answer.frozen ? `Version ${answer.version} is frozen: new ones wait.` : "Thawed: new versions come into use."),
  );
  $("rollback").addEventListener("click", () =>
    act("/admin/model/rollback", { version: Number($("versions").value) }, (answer) =>
      `Version ${answer.version} is back in use, frozen.`),
  );
}

async function act(path, body, words) {
  try {
    setText($("said"), words(await ask(path, { method: "POST", body: body && JSON.stringify(body) })));
    $("said").className = "";
  } catch (error) {
    setText($("said"), `Refused: ${error.message}`);
    $("said").className = "bad";
  }
  refresh();
}

export function show(model) {
  const learns = model.mode !== undefined;
  for (const id of ["modes", "freeze", "versions", "rollback"]) {
    for (const part of [$(id), ...$(id).querySelectorAll("button, input")]) {
      if ("disabled" in part) part.disabled = !learns;
    }
  }
  if (!learns) {
    setText($("model"), "");
    setText($("meaning"), `Policy ${model.policy} is a fixed rule: there is no model to switch.`);
    return;
  }
  const [word, share] = model.mode.split(":");
  for (const button of $("modes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.mode === word);
  }
  if (share && document.activeElement !== $("percent") && $("percent").dataset.mode !== model.mode) {
    $("percent").value = Number(share);
    $("percent").dataset.mode = model.mode;
  }
  frozen = model.frozen;
  const waits = model.waiting_version ? `, version ${model.waiting_version} waits` : "";
  setText($("model"), model.version ? `model version ${model.version}${frozen ? `, frozen${waits}` : ""}` : "no model yet");
  setText($("freeze"), frozen ? "thaw" : "freeze");
  showVersions(model.versions);
  const dog = model.watchdog;
  const note = dog.state === "trusted" ? "" : ` Watchdog: ${dog.state}${dog.why ? `, because ${dog.why}` : ""}.`;
  setText($("meaning"), MEANING[word] + note);
}

/** The list, unless somebody has it open and it would change under the hand. */
function showVersions(versions) {
  const select = $("versions");
  const others = versions.filter((v) => !v.in_use).map((v) => String(v.version));
  if (document.activeElement === select || others.join() === [...select.options].map((o) => o.value).join()) return;
  const before = select.value;
  select.replaceChildren(...others.map((v) => make("option", { value: v }, `version ${v}`)));
  if (others.includes(before)) select.value = before;
  select.disabled = !others.length;
  $("rollback").disabled = !others.length;
}
