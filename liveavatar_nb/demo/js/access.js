// What ipywidgets leaves out for people who use a keyboard or a screen reader: pressed states, reachable drawers, names of text boxes; and Ctrl+Enter, Enter in a question, links to chapters.
function mend(root) {
  for (const group of root.querySelectorAll('.widget-toggle-buttons')) {
    for (const b of group.querySelectorAll('button')) b.setAttribute('aria-pressed', b.classList.contains('mod-active'));
    const name = group.querySelector('.widget-label')?.textContent;
    if (name) { group.setAttribute('role', 'group'); group.setAttribute('aria-label', name); }
  }
  for (const head of root.querySelectorAll('.jupyter-widget-Collapse-header, .p-Collapse-header')) {
    head.tabIndex = 0; head.setAttribute('role', 'button');
    head.setAttribute('aria-expanded', !!head.parentElement?.classList.contains('jupyter-widget-Collapse-open'));
  }
  const lab = /\/(lab|notebooks|doc)\//.test(location.pathname);          // there the chapters lie beside this notebook
  if (lab) for (const a of root.querySelectorAll('a[data-chapter]')) a.href = a.dataset.chapter + '.ipynb';
  for (const box of root.querySelectorAll('textarea, input:not([type=file])')) if (!box.labels?.length && !box.getAttribute('aria-label')) box.setAttribute('aria-label', box.title || box.placeholder || 'text');
}
function render({ el }) {
  el.style.display = 'none';
  let root = null, again = 0;
  const watcher = new MutationObserver(() => { cancelAnimationFrame(again); again = requestAnimationFrame(() => mend(root)); });
  const press = (e, name) => { e.target.dispatchEvent(new Event('change', { bubbles: true })); setTimeout(() => root.querySelector(`button.${name}, .${name} button`)?.click(), 60); e.preventDefault(); e.stopPropagation(); };
  const keys = (e) => {
    if (e.key === 'Enter' && (e.ctrlKey || e.metaKey) && e.target.closest?.('.lav-text')) press(e, 'lav-say');
    if (e.key === 'Enter' && e.target.closest?.('.lav-question')) press(e, 'lav-ask');
    const head = e.target.closest?.('.jupyter-widget-Collapse-header, .p-Collapse-header');
    if (head && (e.key === 'Enter' || e.key === ' ')) { head.click(); e.preventDefault(); }
  };
  const begin = () => {
    root = el.closest('.lav-demo');
    if (!root) return setTimeout(begin, 100);
    mend(root); watcher.observe(root, { subtree: true, childList: true, attributes: true, attributeFilter: ['class'] });
    root.addEventListener('keydown', keys, true);
  };
  begin();
  return () => { watcher.disconnect(); root?.removeEventListener('keydown', keys, true); };
}
export default { render };
