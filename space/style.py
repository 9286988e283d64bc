"""How the page looks: its fonts and colours, and what Gradio's own style lacks for small images."""

import gradio as gr


THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.pixels, .grid-wrap img, .preview img { image-rendering: pixelated; }
.pixels { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important; }
.grid-wrap .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)) !important; }
.grid-wrap .grid-container { grid-template-rows: none !important; grid-auto-rows: auto !important; }
.grid-wrap button { height: auto !important; aspect-ratio: 1; }
.grid-wrap .caption-label { opacity: 0; }
.grid-wrap button:hover .caption-label, .grid-wrap button:focus .caption-label { opacity: 1; }
.rows { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; align-items: center; }
.rows .name { text-align: right; }
.dial .tab-like-container, .dial .min_value, .dial .max_value { display: none; }
.dial-group, .dial-group > * { background: var(--block-background-fill) !important; }
.dial-value { padding-top: 6px; font-size: 22px; font-weight: 600; text-align: center; }
.ruler { position: relative; height: 1.6em; margin: -6px 8px 0; font-size: 13px; }
.ruler { color: var(--body-text-color-subdued); }
.ruler span { position: absolute; transform: translateX(-50%); }
footer .divider { display: none; }
@media (max-width: 600px) {
  .rows { grid-template-columns: 1fr; }
  .rows .name { text-align: left; }
  .grid-wrap .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
}
"""
