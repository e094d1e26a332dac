// The page: tabs, forms and what they show. asking.js asks for jobs, painting.js has the canvas of
// Edit, tokens.js the tab Tokens.
import { State, all, ask, asBase64, asBlob, find, make, seconds, sentence } from "./asking.js";
import { Painter } from "./painting.js";
import { TokenView } from "./tokens.js";

const NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
let facts = null;

// Tabs: the arrow keys move between them, and the address names the one that is open.

function openTab(name, focus = false) {
  for (const tab of all("[role=tab]")) {
    const open = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(open));
    tab.tabIndex = open ? 0 : -1;
    find(`#${tab.getAttribute("aria-controls")}`).hidden = !open;
    if (open && focus) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  if (name === "edit") painter.render();
}

for (const tab of all("[role=tab]")) {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const tabs = all("[role=tab]"), here = tabs.indexOf(tab);
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    openTab(tabs[(next + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
  });
}

// Forms

function options(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value, textContent: text })));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

/** Offer what the chosen model takes. */
function follow(form, fresh = false) {
  const model = facts.generators.find((one) => one.name === form.model.value);
  options(form.class_name, [["", "none"], ...model.classes.map((name) => [name, name])]);
  form.class_name.disabled = !model.classes.length;
  if (fresh) startWith(form, model.reads_text, model.classes);
  form.prompt.disabled = !model.reads_text;
  form.prompt.placeholder = model.reads_text ? form.prompt.dataset.example : "";
  find("[data-hint=prompt]", form).hidden = model.reads_text;
  form.steps.value = model.steps;
  form.steps.disabled = model.steps_fixed;
  form.guidance.value = model.guidance;
  form.guidance.disabled = !model.guided;
  const hint = find("[data-hint=model]", form);
  if (hint) {
    const size = `${(model.parameters / 1e6).toFixed(1)} million parameters`;
    hint.textContent = `${model.type}, ${size}, ${model.resolution} × ${model.resolution} pixels, trained on ${model.trained_on}.`;
  }
}

/** A first wish that shows what a model can do: words, or a class. */
function startWith(form, words, classes) {
  if (words) form.prompt.value = form.prompt.dataset.example;
  else if (classes.length) form.class_name.value = classes[0];
}

/** Values of a form by name, without files and without what is disabled. */
function values(form) {
  const wish = {};
  for (const input of form.elements) {
    if (!input.name || input.disabled || ["file", "range"].includes(input.type)) continue;
    wish[input.name] = input.type === "number" ? Number(input.value) : input.value;
  }
  return wish;
}

/** Figures for pictures of these seeds, empty at first. */
function figures(place, count, wish, title) {
  const made = [];
  for (let i = 0; i < count; i += 1) {
    const image = make("img", { src: NOTHING, alt: `Picture ${i + 1}, not drawn yet`, className: "pixels square waiting" });
    made.push({ image, caption: make("figcaption", { textContent: `seed ${wish.seed + i}` }), seed: wish.seed + i });
  }
  place.replaceChildren(...made.map(({ image, caption }) => make("figure", {}, image, caption)));
  return {
    show(pictures) {
      pictures.forEach((picture, i) => { made[i].image.src = picture; });
    },
    finish(pictures, { square = true, links = true } = {}) {
      pictures.forEach((picture, i) => {
        const { image, caption, seed } = made[i];
        image.src = picture;
        const wished = [wish.class_name && `class ${wish.class_name}`, wish.prompt?.trim()].filter(Boolean);
        image.alt = [`Picture ${i + 1}`, `seed ${seed}`, `by ${title}`, ...wished].join(", ");
        image.classList.remove("waiting");
        image.classList.toggle("square", square);
        if (!links) return;
        const name = `tessella-${title.replace(/[^\w.-]+/g, "-")}-seed-${seed}.png`;
        const actions = make("span", { className: "links" });
        const save = make("a", { className: "small", href: picture, download: name, textContent: "Save" });
        const change = make("button", { type: "button", className: "small", textContent: "Edit" });
        const look = make("button", { type: "button", className: "small", textContent: "Tokens" });
        change.onclick = () => { openTab("edit", true); painter.load(asBlob(picture)); };
        look.onclick = () => { openTab("tokens", true); tokens.load(asBlob(picture)); };
        actions.append(save, change, look);
        caption.append(actions);
      });
    },
  };
}

// Uploads: a file, a drop, a paste, or an example

let example = Math.floor(Math.random() * 1000);

function takesPictures(panel, state, take) {
  const input = find("[type=file]", panel);
  const taken = (file) => {
    if (!file) return;
    if (file.size > facts.limits.bytes) {
      const most = Math.floor(facts.limits.bytes / 2 ** 20);
      state.say(`This file has ${Math.ceil(file.size / 2 ** 20)} MiB, expected at most ${most} MiB.`, true);
    } else take(file);
  };
  input.addEventListener("change", () => taken(input.files[0]));
  find("[data-do=example]", panel).addEventListener("click", async () => {
    input.value = "";
    const answer = await fetch(`/api/example?${example++}`);
    if (answer.ok) take(await answer.blob());
  });
  panel.addEventListener("dragover", (event) => { event.preventDefault(); panel.classList.add("over"); });
  panel.addEventListener("dragleave", () => panel.classList.remove("over"));
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    panel.classList.remove("over");
    taken(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (!panel.hidden && event.clipboardData.files.length) taken(event.clipboardData.files[0]);
  });
}

for (const kind of ["dragover", "drop"]) { // a file that misses its place does not replace the page
  document.addEventListener(kind, (event) => event.preventDefault());
}

// Draw

const draw = find("#draw"), drawState = new State(draw);
find("form", draw).addEventListener("submit", (event) => {
  event.preventDefault();
  const wish = values(event.target), model = facts.generators.find((one) => one.name === wish.model);
  drawState.during(async (signal) => {
    find(".empty", draw).hidden = true;
    const shown = figures(find(".pictures", draw), wish.num, wish, model.title);
    drawState.say("Starting.");
    const done = await ask("/api/draw", wish, {
      signal,
      told: (event) => {
        drawState.told(event);
        if (event.pictures && event.event === "step") shown.show(event.pictures);
      },
    });
    shown.finish(done.pictures);
    drawState.say(`${done.pictures.length} ${done.pictures.length === 1 ? "picture" : "pictures"} in ${seconds(done.seconds)}.`);
  });
});

// Edit

const edit = find("#edit"), editState = new State(edit);
const painter = new Painter(find(".painter", edit), {
  ready: () => { find(".empty", edit).hidden = true; editState.say(""); find(".pictures", edit).replaceChildren(); },
  failed: (text) => editState.say(text, true),
});
takesPictures(edit, editState, (file) => painter.load(file));
find("form", edit).addEventListener("submit", (event) => {
  event.preventDefault();
  const wish = values(event.target), model = facts.generators.find((one) => one.name === wish.model);
  if (!painter.blob) { editState.say("Choose a picture first, or take an example.", true); return; }
  if (!painter.painted) { editState.say("Paint over what is to be drawn anew.", true); return; }
  editState.during(async (signal) => {
    editState.say("Sending the picture.");
    wish.picture = await asBase64(painter.blob);
    wish.mask = painter.mask();
    const done = await ask("/api/edit", wish, { signal, told: (event) => editState.told(event) });
    const shown = figures(find(".pictures", edit), done.pictures.length, wish, model.title);
    shown.finish(done.pictures, { square: false });
    const kept = done.changed ? `${done.changed} pixels outside it changed` : "every pixel outside it is as it was";
    editState.say(`Done in ${seconds(done.seconds)}: ${done.drawn_anew} of ${done.positions} tokens drawn anew; ${kept}.`);
  });
});

// Tokens

const tokenPanel = find("#tokens"), tokenState = new State(tokenPanel);
const tokens = new TokenView(tokenPanel, tokenState);
takesPictures(tokenPanel, tokenState, (file) => tokens.load(file));

// Compare

const compare = find("#compare"), compareState = new State(compare);
find("form", compare).addEventListener("submit", (event) => {
  event.preventDefault();
  const wish = values(event.target), rows = new Map();
  const rowOf = (event) => {
    if (!rows.has(event.place)) {
      const about = make("p"), place = make("div", { className: "pictures" });
      const head = make("div", { className: "head" }, make("h2", { textContent: event.title }), about);
      find(".rows", compare).append(make("article", {}, head, place));
      rows.set(event.place, { about, place, shown: null });
    }
    return rows.get(event.place);
  };
  compareState.during(async (signal) => {
    find(".empty", compare).hidden = true;
    find(".rows", compare).replaceChildren();
    compareState.say("Starting.");
    const done = await ask("/api/compare", wish, {
      signal,
      told: (event) => {
        if (event.event === "waiting") compareState.told(event);
        if (event.place === undefined) return;
        const row = rowOf(event);
        if (event.event === "left out") { row.about.textContent = sentence(event.reason); return; }
        row.shown ??= figures(row.place, wish.num, wish, event.title);
        if (event.event === "step") {
          compareState.told(event, `${event.title}: `);
          if (event.pictures) row.shown.show(event.pictures);
        } else if (event.event === "drawn") {
          row.shown.finish(event.pictures, { links: false });
          const model = facts.generators.find((one) => one.name === event.model);
          const parts = [model.type, `${(model.parameters / 1e6).toFixed(1)} million parameters`, seconds(event.seconds)];
          if (event.without) parts.push(`without the ${event.without}`);
          row.about.textContent = parts.join(", ");
        }
      },
    });
    compareState.say(`${done.models} ${done.models === 1 ? "model" : "models"}, the same seed.`);
  });
});

// What all forms share

for (const button of all("[data-do=dice]")) {
  button.addEventListener("click", () => { button.form.seed.value = Math.floor(Math.random() * 1e6); });
}

async function begin() {
  const answer = await fetch("/api/models");
  facts = await answer.json();
  const names = facts.generators.map((model) => [model.name, model.title]);
  for (const panel of [draw, edit]) {
    const form = find("form", panel);
    options(form.model, names);
    form.model.addEventListener("change", () => follow(form));
    follow(form, panel === draw);
  }
  const form = find("form", compare), classes = new Set(facts.generators.flatMap((model) => model.classes));
  options(form.class_name, [["", "none"], ...[...classes].map((name) => [name, name])]);
  form.prompt.disabled = !facts.generators.some((model) => model.reads_text);
  form.prompt.placeholder = form.prompt.disabled ? "" : form.prompt.dataset.example;
  find("[data-hint=prompt]", form).hidden = !form.prompt.disabled;
  startWith(form, !form.prompt.disabled, [...classes]);
  tokens.offer(facts.tokenizers);
  find("[data-say=version]").textContent = `Tessella ${facts.version}. Nothing leaves this machine.`;
  document.body.dataset.ready = "yes";
}

if (/^#(draw|edit|tokens|compare)$/.test(location.hash)) openTab(location.hash.slice(1));
begin();
