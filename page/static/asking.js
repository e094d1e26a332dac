// Jobs: asking for them, hearing their events, and saying how they go.

export const find = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with properties and children; text is never read as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** File of a picture as base64. */
export function asBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

/** Blob of a data address. */
export function asBlob(address) {
  const bytes = Uint8Array.from(atob(address.slice(address.indexOf(",") + 1)), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

/** Ask for a job; every event goes to `told`. The last event is returned, an error is thrown. */
export async function ask(path, wish, { signal, told = () => {} } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", signal, body: JSON.stringify(wish), headers: { "Content-Type": "application/json" },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("tessella does not answer; is it still running in the terminal?");
  }
  if (!answer.ok) throw new Error((await answer.json()).error);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      last = JSON.parse(line);
      if (last.event === "error") throw new Error(last.error);
      told(last);
    }
  }
  if (!last || last.event !== "done") throw new Error("the answer ended early; see the terminal");
  return last;
}

/** Line of state, progress bar and stop button of a tab. */
export class State {
  constructor(panel) {
    this.line = find(".state p", panel);
    this.bar = find(".state progress", panel);
    this.stop = find("[data-do=stop]", panel);
    this.submit = find("[type=submit]", panel);
    this.stop?.addEventListener("click", () => this.controller?.abort());
  }

  say(text, wrong = false) {
    this.line.textContent = text;
    this.line.classList.toggle("wrong", wrong);
  }

  /** Do one piece of work at a time, with a bar and a way to stop it. */
  async during(work) {
    if (this.controller) return;
    this.controller = new AbortController();
    this.busy(true);
    try {
      await work(this.controller.signal);
    } catch (error) {
      this.say(error.name === "AbortError" ? "Stopped." : sentence(error.message), error.name !== "AbortError");
    } finally {
      this.controller = null;
      this.busy(false);
    }
  }

  busy(on) {
    if (this.stop) {
      const held = document.activeElement === (on ? this.submit : this.stop);
      this.stop.hidden = !on;
      this.submit.disabled = on;
      if (held) (on ? this.stop : this.submit).focus();
    }
    if (this.bar) {
      this.bar.hidden = !on;
      this.bar.value = 0;
    }
  }

  told(event, shown = "") {
    if (event.event === "waiting") this.say(`Waiting: ${event.before} before this one.`);
    if (event.event === "step") {
      this.bar.value = event.step / event.steps;
      const line = `${shown}Step ${event.step} of ${event.steps}`;
      if (event.step === 1 || event.step === event.steps || !this.line.textContent.startsWith(`${shown}Step`)) this.say(line);
      else this.line.firstChild.data = line;
    }
  }
}

export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

export function seconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
}
