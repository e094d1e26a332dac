// A picture that is painted over, by pointer or by keyboard; what is painted becomes a mask.

const LONGEST = 1024, SHORTEST = 512; // sides of the canvas, whatever the picture's
const PAINT = "#e0218a";

export class Painter {
  constructor(root, { ready, failed }) {
    this.root = root;
    this.ready = ready;
    this.failed = failed;
    this.canvas = root.querySelector("canvas");
    this.brush = root.querySelector("[name=brush]");
    this.eraser = root.querySelector("[data-do=erase]");
    this.blob = this.picture = null;
    this.strokes = [];
    this.layer = document.createElement("canvas");
    this.cursor = null;
    this.eraser.addEventListener("click", () => {
      this.eraser.setAttribute("aria-pressed", String(!this.erasing));
    });
    root.querySelector("[data-do=undo]").addEventListener("click", () => { this.strokes.pop(); this.repaint(); });
    root.querySelector("[data-do=clear]").addEventListener("click", () => { this.strokes = []; this.repaint(); });
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => { this.cursor = null; this.render(); });
  }

  get erasing() { return this.eraser.getAttribute("aria-pressed") === "true"; }

  /** Width of the brush, in pixels of the canvas. */
  get width() { return Number(this.brush.value) / 100 * Math.max(this.canvas.width, this.canvas.height); }

  /** Whether anything is painted. */
  get painted() {
    if (!this.strokes.length) return false;
    const { data } = this.layer.getContext("2d").getImageData(0, 0, this.layer.width, this.layer.height);
    for (let i = 3; i < data.length; i += 4) if (data[i] >= 128) return true;
    return false;
  }

  async load(blob) {
    let picture;
    try {
      picture = await createImageBitmap(blob);
    } catch {
      this.failed("This browser cannot show this file; expected a picture such as PNG, JPEG or WebP.");
      return;
    }
    const long = Math.max(picture.width, picture.height);
    const scale = long > LONGEST ? LONGEST / long : Math.max(1, Math.floor(SHORTEST / long));
    for (const canvas of [this.canvas, this.layer]) {
      canvas.width = Math.max(1, Math.round(picture.width * scale));
      canvas.height = Math.max(1, Math.round(picture.height * scale));
    }
    this.blob = blob;
    this.picture = picture;
    this.strokes = [];
    this.root.hidden = false;
    this.repaint();
    this.ready();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * this.canvas.width, (event.clientY - box.top) / box.height * this.canvas.height];
  }

  begin(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.add(this.place(event));
  }

  move(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.strokes.at(-1)?.points.push(this.place(part));
    this.repaint();
  }

  key(event) {
    const step = this.width / 2;
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!way && event.key !== " ") return;
    event.preventDefault();
    this.cursor ??= [this.canvas.width / 2, this.canvas.height / 2];
    if (way) {
      const most = [this.canvas.width, this.canvas.height];
      this.cursor = this.cursor.map((value, axis) => Math.min(most[axis], Math.max(0, value + way[axis])));
      this.render();
    } else this.add([...this.cursor]);
  }

  add(point) {
    this.strokes.push({ width: this.width, erase: this.erasing, points: [point] });
    this.repaint();
  }

  repaint() {
    const pen = this.layer.getContext("2d", { willReadFrequently: true });
    pen.clearRect(0, 0, this.layer.width, this.layer.height);
    for (const { width, erase, points } of this.strokes) {
      pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
      Object.assign(pen, { lineWidth: width, lineCap: "round", lineJoin: "round", strokeStyle: PAINT });
      pen.beginPath();
      pen.moveTo(...points[0]);
      pen.lineTo(points[0][0] + 0.01, points[0][1]); // a line without length would not be drawn
      for (const point of points) pen.lineTo(...point);
      pen.stroke();
    }
    this.render();
  }

  render() {
    if (!this.picture) return;
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingEnabled = this.picture.width > this.canvas.width;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    pen.drawImage(this.picture, 0, 0, this.canvas.width, this.canvas.height);
    pen.globalAlpha = 0.6;
    pen.drawImage(this.layer, 0, 0);
    pen.globalAlpha = 1;
    if (!this.cursor) return;
    for (const [colour, width] of [["#fff", 5], ["#000", 2]]) {
      Object.assign(pen, { strokeStyle: colour, lineWidth: width });
      pen.beginPath();
      pen.arc(...this.cursor, this.width / 2, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  /** What is painted, as base64 of a PNG: white on black. */
  mask() {
    const white = document.createElement("canvas"), black = document.createElement("canvas");
    for (const canvas of [white, black]) {
      canvas.width = this.layer.width;
      canvas.height = this.layer.height;
    }
    const pen = white.getContext("2d");
    pen.drawImage(this.layer, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, white.width, white.height);
    const last = black.getContext("2d");
    last.fillRect(0, 0, black.width, black.height);
    last.drawImage(white, 0, 0);
    const address = black.toDataURL("image/png");
    return address.slice(address.indexOf(",") + 1);
  }
}
