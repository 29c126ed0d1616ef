/** The cards of the models: a group of radio buttons with what is known of each. */

/**
 * @param {HTMLElement} place
 * @param {object[]} models
 * @param {(model: object) => void} choose
 */
export function showModels(place, models, choose) {
  models.forEach((model, number) => {
    const card = element('div', 'card');
    const label = element('label', 'pick');
    const input = Object.assign(element('input'), { type: 'radio', name: 'model', value: model.file, checked: number === 0 });
    input.addEventListener('change', () => choose(model));
    const head = element('span', 'head');
    head.append(element('strong', '', model.name), element('span', 'factor', `×${model.scale}`));
    const line = `${count(model.parameters)} parameters · ${(model.bytes / 1e6).toFixed(model.bytes < 1e6 ? 2 : 1)} MB`;
    const texts = element('span', 'texts');
    texts.append(head, element('span', 'facts', line));
    label.append(input, texts);

    const details = element('details');
    const list = element('dl');
    for (const [term, value] of Object.entries(model.facts)) {
      list.append(element('dt', '', term), element('dd', term === 'SHA-256' ? 'hash' : '', value));
    }
    const summary = element('summary', '', 'Details');
    summary.append(element('span', 'spoken', ` of ${model.name}`));
    details.append(summary, list);
    card.append(label, details);
    place.append(card);
  });
}

function count(number) {
  return number === null ? 'unknown' : number >= 1e6 ? `${(number / 1e6).toFixed(2)} million` : number.toLocaleString('en');
}

function element(name, style = '', text = '') {
  const made = document.createElement(name);
  if (style) made.className = style;
  if (text) made.textContent = text;
  return made;
}
