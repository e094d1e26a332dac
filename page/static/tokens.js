// The tab Tokens: a picture, its tokens as colours, what they weigh, and one token changed by hand.
import { ask, asBase64, make } from "./asking.js";

const number = (value) => value.toLocaleString("en");

export class TokenView {
  constructor(panel, state) {
    this.find = (selector) => panel.querySelector(selector);
    this.state = state;
    this.select = this.find("[name=tokenizer]");
    this.grid = this.find(".grid");
    this.blob = this.codes = null;
    this.select.addEventListener("change", () => { this.hint(); if (this.blob) this.load(this.blob); });
    this.find("[data-do=random]").addEventListener("click", () => this.change(this.sizes.map((size) => Math.floor(Math.random() * size))));
    this.find("[data-do=reset-one]").addEventListener("click", () => this.change([...this.own[this.chosen]]));
    this.find("[data-do=reset-all]").addEventListener("click", () => { this.codes = this.own.map((row) => [...row]); this.decode(); });
    this.grid.addEventListener("keydown", (event) => this.key(event));
  }

  offer(tokenizers) {
    this.tokenizers = tokenizers;
    this.select.replaceChildren(...tokenizers.map(({ name, title }) => make("option", { value: name, textContent: title })));
    this.hint();
  }

  hint() {
    const chosen = this.tokenizers.find((one) => one.name === this.select.value);
    if (!chosen) return;
    const count = chosen.shape.reduce((a, b) => a * b, 1), each = Math.round(chosen.bits / count * 10) / 10;
    this.find("[data-hint=tokenizer]").textContent = `${chosen.shape.join(" × ")} tokens of ${each} bits ` +
      `for ${chosen.resolution} × ${chosen.resolution} pixels: ${number(Math.round(chosen.bits))} bits.`;
  }

  load(blob) {
    return this.state.during(async (signal) => {
      this.state.say("Encoding.");
      const done = await ask("/api/tokens", { tokenizer: this.select.value, picture: await asBase64(blob) }, { signal });
      Object.assign(this, { blob, tokenizer: this.select.value, codes: done.codes, length: done.length, sizes: done.sizes, chosen: null });
      this.own = done.codes.map((row) => [...row]);
      this.columns = done.shape.length === 2 ? done.shape[1] : Math.ceil(Math.sqrt(done.codes.length));
      this.find(".empty").hidden = true;
      this.find(".views").hidden = false;
      this.find(".chosen").hidden = true;
      this.find("[data-view=original]").src = done.pictures[0];
      this.find("[data-view=decoded]").src = done.pictures[1];
      this.build();
      this.paint(done.colours);
      this.weigh(done);
      this.state.say("");
    });
  }

  weigh(done) {
    const table = this.find(".weights"), side = this.tokenizers.find((one) => one.name === this.tokenizer).resolution;
    table.hidden = false;
    const cut = done.size.every((length) => length === side) ? "" : `, cut from ${number(done.size[0])} × ${number(done.size[1])}`;
    table.caption.textContent = `${number(done.codes.length)} tokens hold ${number(Math.round(done.bits))} bits. ` +
      `Files of the same ${side} × ${side} pixels${cut}, and how near each comes to them:`;
    table.tBodies[0].replaceChildren(...done.weights.map(([name, bytes, psnr]) => {
      const row = make("tr", {}, make("th", { scope: "row", textContent: name }));
      row.append(make("td", { textContent: number(bytes) }), make("td", { textContent: psnr >= 100 ? "exact" : `${psnr.toFixed(1)} dB` }));
      return row;
    }));
  }

  build() {
    this.cells = this.codes.map((_, place) => {
      const cell = make("button", { type: "button", tabIndex: place ? -1 : 0 });
      cell.setAttribute("role", "gridcell");
      cell.addEventListener("click", () => this.choose(place));
      return cell;
    });
    this.grid.style.gridTemplateColumns = `repeat(${this.columns}, 1fr)`;
    const rows = [];
    for (let start = 0; start < this.cells.length; start += this.columns) {
      const row = make("div", { className: "row" }, ...this.cells.slice(start, start + this.columns));
      row.setAttribute("role", "row");
      rows.push(row);
    }
    this.grid.replaceChildren(...rows);
  }

  paint(colours) {
    this.cells.forEach((cell, place) => {
      const changed = this.codes[place].some((code, i) => code !== this.own[place][i]);
      cell.style.backgroundColor = colours[place];
      cell.classList.toggle("changed", changed);
      cell.setAttribute("aria-selected", String(place === this.chosen));
      cell.setAttribute("aria-label", `${this.nameOf(place)}${changed ? ", changed" : ""}`);
    });
  }

  nameOf(place) {
    return `Token in row ${Math.floor(place / this.columns) + 1}, column ${place % this.columns + 1}`;
  }

  key(event) {
    const here = this.cells?.indexOf(document.activeElement) ?? -1;
    const way = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (here < 0 || way === undefined) return;
    event.preventDefault();
    const next = this.cells[here + way];
    if (!next) return;
    this.cells.forEach((cell) => { cell.tabIndex = cell === next ? 0 : -1; });
    next.focus();
  }

  choose(place) {
    this.chosen = place;
    this.cells.forEach((cell, i) => {
      cell.setAttribute("aria-selected", String(i === place));
      cell.tabIndex = i === place ? 0 : -1;
    });
    this.find(".chosen").hidden = false;
    this.find("[data-say=chosen]").textContent = this.nameOf(place);
    this.editors();
  }

  /** A switch for each bit, or a number for each code. */
  editors() {
    const codes = this.codes[this.chosen];
    const bits = this.sizes.every((size) => size === 2);
    this.find(".codes").classList.toggle("bits", bits);
    this.find(".codes").replaceChildren(...codes.map((code, i) => (bits ? this.bit(code, i) : this.number(code, i))));
  }

  bit(code, i) {
    const bit = make("button", { type: "button", className: "bit", textContent: code });
    bit.setAttribute("role", "switch");
    bit.setAttribute("aria-label", `Bit ${i}`);
    bit.setAttribute("aria-checked", String(code === 1));
    bit.addEventListener("click", () => {
      const flipped = 1 - this.codes[this.chosen][i];
      this.codes[this.chosen][i] = flipped;
      bit.textContent = flipped;
      bit.setAttribute("aria-checked", String(flipped === 1));
      this.decode();
    });
    return bit;
  }

  number(code, i) {
    const most = this.sizes[i] - 1;
    const input = make("input", { type: "number", min: 0, max: most, step: 1, required: true });
    input.value = code;
    input.addEventListener("change", () => {
      if (!input.reportValidity()) return;
      this.codes[this.chosen][i] = Number(input.value);
      this.decode();
    });
    return make("label", { textContent: `Code ${i}, 0 to ${number(most)}` }, input);
  }

  change(codes) {
    this.codes[this.chosen] = codes;
    this.decode();
  }

  /** Decode the tokens as they are now; changes on the way are decoded together after it. */
  async decode() {
    this.stale = true;
    if (this.decoding) return;
    this.decoding = true;
    this.find(".views").ariaBusy = "true";
    try {
      while (this.stale) {
        this.stale = false;
        const wish = { tokenizer: this.tokenizer, codes: this.codes, length: this.length };
        const done = await ask("/api/decode", wish);
        this.find("[data-view=decoded]").src = done.pictures[0];
        this.paint(done.colours);
      }
      const count = this.cells.filter((cell) => cell.classList.contains("changed")).length;
      this.state.say(count ? `${count} of ${this.cells.length} tokens changed.` : "");
    } catch (error) {
      this.state.say(error.message, true);
    } finally {
      this.decoding = false;
      this.find(".views").ariaBusy = "false";
    }
    if (this.chosen !== null && !this.find(".codes").contains(document.activeElement)) this.editors();
  }
}
