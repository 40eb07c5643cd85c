// Bundles src/ and OpenSeadragon into built/, with the licence of what is in there. Nothing is fetched at run time.
import { build } from "esbuild";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";

await build({
  entryPoints: { viewer: "src/main.js" },
  outdir: "built",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  loader: { ".css": "text" },
});
const { version } = JSON.parse(readFileSync("node_modules/openseadragon/package.json", "utf8"));
const licence = readFileSync("node_modules/openseadragon/LICENSE.txt", "utf8");
writeFileSync("built/licences.txt", `viewer.js holds OpenSeadragon ${version}:\n\n${licence}`);
