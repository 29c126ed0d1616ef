/** Before and after in one place: a line that is moved by a slider or by the pointer, and zoom. */

const byId = (id) => document.getElementById(id);
const STEPS = [0.125, 0.25, 0.5, 1, 2, 4];
const SHOWN = 100e6; // pixels of a picture that a browser draws

export class Comparison {
  constructor() {
    this.job = null;
    this.scale = null; // pixels of the screen by pixels of the picture; null: as it fits
    this.stage = byId('stage');
    byId('split').addEventListener('input', () => this.draw());
    byId('zoom-in').addEventListener('click', () => this.step(1));
    byId('zoom-out').addEventListener('click', () => this.step(-1));
    byId('fit').addEventListener('click', () => this.zoom(null));
    this.stage.addEventListener('scroll', () => this.draw());
    this.stage.addEventListener('keydown', (event) => this.key(event));
    this.stage.addEventListener('pointerdown', (event) => this.press(event));
    this.stage.addEventListener('dblclick', (event) => this.zoom(this.scale === null ? 1 : null, event));
    new ResizeObserver(() => this.layout()).observe(this.stage);
  }

  /**
   * @param {object | null} job of a picture that is done.
   * @param {boolean} move whether to go there.
   */
  show(job, move = false) {
    const section = byId('view-section');
    for (const image of [byId('before'), byId('after')]) {
      if (image.src) URL.revokeObjectURL(image.src);
      image.removeAttribute('src');
    }
    document.querySelectorAll('.queue [aria-current]').forEach((item) => item.removeAttribute('aria-current'));
    this.job = job;
    section.hidden = !job;
    if (!job) return;
    job.row.item.setAttribute('aria-current', 'true');
    const drawn = job.large[0] * job.large[1] <= SHOWN;
    section.classList.toggle('undrawn', !drawn);
    if (drawn) {
      byId('before').src = URL.createObjectURL(job.before);
      byId('after').src = URL.createObjectURL(job.png);
    }
    byId('after').alt = `${job.file.name}, enlarged`;
    byId('before').alt = `${job.file.name}, before`;
    byId('view-title').textContent = job.file.name;
    Object.assign(byId('download'), { href: job.url, download: job.row.save.download });
    this.zoom(null);
    if (move) {
      const smooth = !matchMedia('(prefers-reduced-motion: reduce)').matches;
      section.scrollIntoView({ behavior: smooth ? 'smooth' : 'instant' });
      byId('split').focus({ preventScroll: true });
    }
  }

  /** Pixels of the page by pixels of the picture. */
  get factor() {
    const [width, height] = this.job.large;
    const fitting = Math.min(this.stage.clientWidth / width, this.highest / height);
    return this.scale === null ? Math.min(fitting, 4 / devicePixelRatio) : this.scale / devicePixelRatio;
  }

  get highest() {
    return Math.max(240, Math.min(innerHeight * 0.72, 900));
  }

  step(direction) {
    const now = this.factor * devicePixelRatio;
    const beyond = STEPS.filter((value) => (direction > 0 ? value > now * 1.01 : value < now * 0.99));
    if (beyond.length) this.zoom(direction > 0 ? beyond[0] : beyond.at(-1));
  }

  /** Zooms about the middle of what is seen, or about the pointer. */
  zoom(scale, event = null) {
    const { stage } = this;
    const box = stage.getBoundingClientRect();
    const at = event ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
    const before = this.scale === null ? null : this.factor;
    const sheet = byId('sheet').getBoundingClientRect();
    const share = [(box.left + at[0] - sheet.left) / (sheet.width || 1), (box.top + at[1] - sheet.top) / (sheet.height || 1)];
    this.scale = scale;
    this.layout();
    const [width, height] = this.job.large.map((side) => side * this.factor);
    stage.scrollTo(share[0] * width - at[0], share[1] * height - at[1]);
    if (before !== null || scale !== null) this.draw();
  }

  layout() {
    if (!this.job) return;
    const [width, height] = this.job.large.map((side) => Math.max(1, Math.round(side * this.factor)));
    Object.assign(byId('sheet').style, { width: `${width}px`, height: `${height}px` });
    this.stage.style.height = `${Math.min(height, this.highest)}px`;
    this.stage.classList.toggle('sharp', this.factor * devicePixelRatio >= 2);
    byId('zoom').textContent = `${Math.round(this.factor * devicePixelRatio * 100)} %`;
    this.draw();
  }

  /** Puts the line where the slider is, and cuts the picture before it there. */
  draw() {
    if (!this.job) return;
    const slider = byId('split');
    const share = slider.value / 100;
    const stage = this.stage.getBoundingClientRect();
    const sheet = byId('sheet').getBoundingClientRect();
    const left = Math.max(sheet.left, stage.left);
    const right = Math.min(sheet.right, stage.right);
    const line = left + share * (right - left);
    byId('line').style.left = `${line - stage.left}px`;
    byId('before').style.clipPath = `inset(0 ${Math.max(0, sheet.right - line)}px 0 0)`;
    slider.setAttribute('aria-valuetext', `${slider.value}% before, ${100 - slider.value}% after`);
  }

  key(event) {
    const zooms = { '+': () => this.step(1), '=': () => this.step(1), '-': () => this.step(-1), 0: () => this.zoom(null) };
    if (event.ctrlKey || event.metaKey || event.altKey || !zooms[event.key]) return;
    event.preventDefault();
    zooms[event.key]();
  }

  /** The pointer moves the line where it is near or where nothing is to be scrolled, else the picture. */
  press(event) {
    if (event.button || event.pointerType === 'touch' && this.scale !== null) return;
    const { stage } = this;
    const line = byId('line').getBoundingClientRect();
    const near = Math.abs(event.clientX - (line.left + line.right) / 2) < 24;
    const scrolls = stage.scrollWidth > stage.clientWidth + 1 || stage.scrollHeight > stage.clientHeight + 1;
    const from = { x: event.clientX, y: event.clientY, left: stage.scrollLeft, top: stage.scrollTop };
    const move = ({ clientX, clientY }) => {
      if (scrolls && !near) return stage.scrollTo(from.left + from.x - clientX, from.top + from.y - clientY);
      const box = stage.getBoundingClientRect();
      const sheet = byId('sheet').getBoundingClientRect();
      const left = Math.max(sheet.left, box.left);
      const right = Math.min(sheet.right, box.right);
      byId('split').value = Math.round((100 * (clientX - left)) / (right - left));
      this.draw();
    };
    if (near || !scrolls) move(event);
    stage.setPointerCapture(event.pointerId);
    stage.addEventListener('pointermove', move);
    const end = () => stage.removeEventListener('pointermove', move);
    stage.addEventListener('pointerup', end, { once: true });
    stage.addEventListener('pointercancel', end, { once: true });
  }
}
