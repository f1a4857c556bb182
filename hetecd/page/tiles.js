// Layers of tiles, for scenes that are too large to lie within the page: report.js calls these when a server names them.

const TILE_PX = 256;

const tiling = (source, pane) => ({
  pane, bounds, tileSize: TILE_PX, minZoom: -50, maxZoom: 50, minNativeZoom: -source.levels, maxNativeZoom: 0,
});

function tiledPicture(image, pane) {
  return L.tileLayer(image.tiles, { ...tiling(image, pane), zoomOffset: image.levels });
}

function tiledPaint(source) {
  const layer = L.gridLayer({ ...tiling(source, "paint"), opacity: 0.8 });
  layer.createTile = (at, done) => {
    const canvas = element("canvas", "", { width: TILE_PX, height: TILE_PX }), grey = new Image();
    canvas.levels = new Uint8Array(TILE_PX * TILE_PX);
    grey.addEventListener("load", () => {
      canvas.levels = levelsOf(grey);
      paintLevels(canvas, canvas.levels);
      done(null, canvas);
    });
    grey.addEventListener("error", () => done(new Error("tile"), canvas));
    grey.src = L.Util.template(source.tiles, { z: at.z + source.levels, x: at.x, y: at.y });
    return canvas;
  };
  layer.repaint = () => Object.values(layer._tiles).forEach(({ el }) => paintLevels(el, el.levels));
  layer.read = (row, col) => {
    const scale = 2 ** layer._tileZoom, [y, x] = [row, col].map((value) => Math.floor(value * scale));
    const tile = layer._tiles[`${Math.floor(x / TILE_PX)}:${Math.floor(y / TILE_PX)}:${layer._tileZoom}`];
    return tile ? tile.el.levels[(y % TILE_PX) * TILE_PX + (x % TILE_PX)] : 0;
  };
  return layer;
}

// What polygons hold at other thresholds takes a look at every pixel: it comes when it is known.
async function loadBins() {
  const answer = await fetch(data.bins);
  if (!answer.ok) return;
  (await answer.json()).forEach((bins, k) => data.polygons[k] && (data.polygons[k].bins = bins));
  update();
}
