"use strict";
// Each canvas carries its map as zlib-compressed bytes, a value from 0 to 255 per pixel: a heatmap from 0 to 1, a
// signed map from -1 (1) over 0 (128) to 1 (255).  Colours are tables of 256 RGB values, kept by the <option>s.
(async () => {
  const find = id => document.getElementById(id);
  const decoded = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const inflated = async text => {
    const stream = new Blob([decoded(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const controls = {
    opacity: find("opacity"), threshold: find("threshold"), colours: find("colours"),
    show: find("show"), outline: find("outline"),
  };
  const bar = find("bar").getContext("2d");
  const table = option => decoded(option.dataset.table);
  const isSigned = () => controls.show.value === "signed";

  const photoOf = element => element.closest("section").querySelector("img").src; // the photo is in the file once
  for (const image of document.querySelectorAll("img.again")) image.src = photoOf(image);

  const views = [];
  for (const canvas of document.querySelectorAll("canvas[data-heatmap]")) {
    const image = canvas.previousElementSibling;
    image.src = photoOf(canvas);
    views.push({
      canvas, image,
      context: canvas.getContext("2d"),
      heatmap: await inflated(canvas.dataset.heatmap),
      signed: canvas.dataset.signed ? await inflated(canvas.dataset.signed) : null,
    });
  }

  // Colour of each of the 256 values as one 32-bit pixel; values under the threshold are transparent.
  const pixels = (colours, threshold, signed) => {
    const bytes = new Uint8ClampedArray(4 * 256);
    for (let value = 0; value < 256; value++) {
      const size = signed ? Math.abs(value - 128) / 127 : value / 255;
      bytes.set(colours.subarray(3 * value, 3 * value + 3), 4 * value);
      bytes[4 * value + 3] = size >= threshold ? 255 : 0;
    }
    return new Uint32Array(bytes.buffer);
  };

  const drawOutline = (out, values, width, colour) => {
    const shown = i => colour[values[i]] >>> 24 !== 0;
    for (let i = 0; i < values.length; i++) {
      if (!shown(i)) continue;
      const x = i % width;
      const inside = (x === 0 || shown(i - 1)) && (x === width - 1 || shown(i + 1)) &&
        (i < width || shown(i - width)) && (i >= values.length - width || shown(i + width));
      if (!inside) out[i] = 0xffffffff;
    }
  };

  const draw = () => {
    const signed = isSigned();
    const threshold = Number(controls.threshold.value) / 100;
    const option = signed ? controls.show.selectedOptions[0] : controls.colours.selectedOptions[0];
    const colour = pixels(table(option), threshold, signed);
    for (const view of views) {
      const values = signed ? view.signed : view.heatmap;
      const { width, height } = view.canvas;
      const image = new ImageData(width, height);
      if (values) {
        const out = new Uint32Array(image.data.buffer);
        for (let i = 0; i < values.length; i++) out[i] = colour[values[i]];
        if (controls.outline.checked && threshold > 0) drawOutline(out, values, width, colour);
      }
      view.context.putImageData(image, 0, 0);
    }
    const strip = new ImageData(256, 1);
    const all = pixels(table(option), 0, signed);
    new Uint32Array(strip.data.buffer).set(all);
    bar.putImageData(strip, 0, 0);
    document.body.classList.toggle("signed", signed);
    const ends = (signed ? controls.show.selectedOptions[0] : controls.show.options[0]).dataset;
    find("low").textContent = `${ends.low} ${signed ? "−1" : "0"}`;
    find("high").textContent = `1 ${ends.high}`;
    controls.colours.disabled = signed;
    find("threshold-value").textContent = `${controls.threshold.value} %`;
    fade();
  };

  // A heatmap is laid over the photo; a signed map tints it: the photo fades, and the map multiplies its light.
  const fade = () => {
    const opacity = Number(controls.opacity.value) / 100;
    const signed = isSigned();
    for (const { canvas, image } of views) {
      canvas.style.opacity = signed ? 1 : opacity;
      image.style.opacity = signed ? 1 - opacity : 1;
    }
    find("opacity-value").textContent = `${controls.opacity.value} %`;
  };

  controls.opacity.addEventListener("input", fade);
  controls.threshold.addEventListener("input", draw);
  for (const one of [controls.colours, controls.show, controls.outline]) one.addEventListener("change", draw);
  find("controls").addEventListener("submit", event => event.preventDefault());
  find("controls").hidden = false;
  draw();
})().catch(error => {
  const note = document.getElementById("trouble");
  note.textContent = `The heatmaps cannot be shown in this browser (${error}): it must be of 2023 or later.`;
  note.hidden = false;
});
