"""How the page looks, and what its keys do; nothing is loaded from elsewhere."""

CSS = """
.gradio-container { --body-text-color-subdued: #5a6270; --block-info-text-color: #5a6270;
  width: 100%; max-width: 1320px !important; margin: 0 auto !important; }
.dark .gradio-container, .gradio-container.dark { --body-text-color-subdued: #a3abb8;
  --block-info-text-color: #a3abb8; }

#top { align-items: end; flex-wrap: wrap; }
button.primary { background: #2563eb !important; color: #fff !important; }
#title h1 { font-size: 1.35rem; font-weight: 650; margin: 0 0 .5rem; }
#title, #facts { min-width: 120px; }
.ji { margin: 0; }
.ji img { display: block; width: 100%; max-height: 62vh; object-fit: contain; border-radius: 4px; background: #fff; }
.ji img.ji-pixels { image-rendering: pixelated; }
.ji-row { display: flex; flex-wrap: wrap; gap: .5rem; }
.ji-row .ji { flex: 1 1 72px; max-width: 140px; }
.ji-code textarea { font-family: var(--font-mono); font-size: .82rem; }
.ji div { display: grid; place-items: center; min-height: 180px; border: 1px dashed var(--border-color-primary);
  border-radius: 4px; color: var(--body-text-color-subdued); }
.ji figcaption { margin-top: .35rem; font-size: .85rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.ji-note { margin: 0; min-height: 1.4em; font-size: .9rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
#nothing .ji-note { padding: .6rem .8rem; border-left: 3px solid var(--primary-500); color: var(--body-text-color); }
.ji-table { border-collapse: collapse; font-size: .9rem; border: 0 !important; }
.ji-table th, .ji-table td { text-align: left; padding: .2rem 1.2rem .2rem 0 !important; font-weight: 400;
  border: 0 !important; }
.ji-table tr { border: 0 !important; }
.ji-table td { font-variant-numeric: tabular-nums; }
#history, #history .grid-wrap, #history .grid-container { min-height: 0 !important; height: auto !important; }
#history .thumbnail-item { aspect-ratio: auto; height: 110px; }
#strip img { max-height: 40vh; }
button:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible { outline: 2px solid
  var(--primary-500); outline-offset: 1px; }
@media (max-width: 640px) {
  #title, #facts { flex: 1 1 100%; }
  #top { gap: .25rem; }
  .ji img { max-height: none; }
}
"""

HEAD = """<script>
document.addEventListener("keydown", event => {
  if (event.key !== "Enter" || !event.target.matches("input[type=number], input[type=range]")) return;
  const tab = event.target.closest("[role=tabpanel]"), button = tab && tab.querySelector("button.ji-go");
  if (button) { event.preventDefault(); event.target.blur(); event.target.focus(); setTimeout(() => button.click(), 50); }
});
</script>"""
