'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const at = (id) => document.getElementById(id);

  const metric = at('metric');
  if (metric) {
    const plots = [...document.querySelectorAll('.trade-off')];
    const show = () => plots.forEach((plot, index) => { plot.hidden = index !== Number(metric.value); });
    metric.addEventListener('change', show);
    show(); // a browser that goes back restores the choice
  }
  if (!data.pictures.length) return;

  const [image, left, right, split, stage] = ['image', 'left', 'right', 'split', 'stage'].map(at);
  let chosen = data.pair; // names, kept when another image is chosen

  const move = () => {
    stage.style.setProperty('--at', `${split.value}%`);
    split.setAttribute('aria-valuetext', `${split.value}% ${chosen[0]}, ${100 - split.value}% ${chosen[1]}`);
  };

  const put = (side, number, picture) => {
    const version = picture.versions[side.value];
    const img = at(number ? 'under' : 'over');
    img.src = version.whole;
    img.alt = `${picture.title}, ${version.name}, ${number ? 'right' : 'left'} of the line`;
    at(number ? 'right-tag' : 'left-tag').textContent = version.name;
    chosen[number] = version.name;
    const which = number ? 'right' : 'left';
    const crop = at(`${which}-crop`);
    crop.src = document.querySelectorAll('.versions')[image.value].querySelectorAll('img')[side.value].src;
    crop.alt = `Crop of ${picture.title}: ${version.name}`;
    const name = document.createElement('b');
    name.textContent = version.name;
    at(`${which}-note`).replaceChildren(name, version.notes.join(', '));
  };

  const show = () => {
    const picture = data.pictures[image.value];
    put(left, 0, picture);
    put(right, 1, picture);
    const size = `${picture.width}×${picture.height} pixels` + (picture.reduced ? ', shown smaller' : '');
    at('caption').textContent = `${picture.title}: ${chosen[0]} and ${chosen[1]}, ${size}.`;
    move();
  };

  const choose = () => {
    const picture = data.pictures[image.value];
    const names = picture.versions.map((version) => version.name);
    [left, right].forEach((side, number) => {
      side.replaceChildren(...names.map((name, index) => new Option(name, index)));
      const wanted = names.indexOf(chosen[number]);
      side.value = wanted >= 0 ? wanted : Math.min(number, names.length - 1);
    });
    const ratio = picture.width / picture.height;
    stage.style.aspectRatio = `${picture.width} / ${picture.height}`;
    stage.style.width = `min(100%, ${Math.max(picture.width, 776)}px, ${(82 * ratio).toFixed(1)}vh)`;
    const [x, y, width, height] = picture.region;
    Object.assign(at('region').style, { left: `${x}%`, top: `${y}%`, width: `${width}%`, height: `${height}%` });
    show();
  };

  chosen = [...chosen];
  image.addEventListener('change', choose);
  left.addEventListener('change', show);
  right.addEventListener('change', show);
  split.addEventListener('input', move);
  choose();
})();
