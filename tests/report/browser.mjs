// Opens pages in Chromium and drives them; prints what it saw as JSON, or takes screenshots.
//   node browser.mjs check CHROMIUM PAGE…          what the tests ask for, a line for each page
//   node browser.mjs shot CHROMIUM PAGE OUT WIDTH HEIGHT [dark]   the top of a page as a picture
// Needs playwright-core, and for its accessibility axe-core, in NODE_PATH.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join } from "node:path";

const paths = [import.meta.dirname, ...(process.env.NODE_PATH ?? "").split(delimiter).filter(Boolean)];
const require = createRequire(import.meta.url);
const find = (name) => require.resolve(name, { paths });
const { chromium } = require(find("playwright-core"));
const [, , command, executablePath, ...rest] = process.argv;
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args: ["--headless", ...quiet] });

async function open(file, width, height, colorScheme, bypassCSP = false, deviceScaleFactor = 1) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, bypassCSP, deviceScaleFactor });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (message) => problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("request", (request) => { if (!request.url().startsWith("file:")) problems.push(`a request to ${request.url()}`); });
  await page.goto(`file://${file}`);
  return { page, problems };
}

async function axe(file, width, height, scheme) {
  const { page } = await open(file, width, height, scheme, true); // axe is no part of the page, whose policy forbids it
  await page.addScriptTag({ content: readFileSync(join(find("axe-core"), "..", "axe.min.js"), "utf8") });
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map((each) => `${scheme} ${width}: ${each.id}: ${each.nodes[0].html.slice(0, 120)}`);
}

const said = (page) => page.evaluate(() => document.getElementById("said").textContent);
const press = async (page, ...keys) => { for (const key of keys) await page.keyboard.press(key); return said(page); };

/** Hover, zoom, keyboard and folding; what the page says of each. */
async function drive({ page }) {
  const total = await page.evaluate(() => JSON.parse(document.getElementById("data").textContent).timeline?.total ?? 0);
  if (total < 16) return null; // too few to zoom
  const box = await page.locator("#canvas").boundingBox();
  const reset = () => page.evaluate(() => document.getElementById("reset").disabled);
  const seen = {};
  await page.mouse.move(box.x + box.width * 0.8, box.y + 62);
  seen.hover = await page.evaluate(() => document.getElementById("tip").textContent);
  await page.mouse.move(box.x + box.width * 0.6, box.y + 62);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.9, box.y + 62, { steps: 4 });
  await page.mouse.up();
  seen.zoomed = !(await reset());
  await page.click("#reset");
  seen.reset = await reset();
  await page.keyboard.down("Control");
  await page.mouse.move(box.x + box.width * 0.6, box.y + 62);
  await page.mouse.wheel(0, -120);
  await page.keyboard.up("Control");
  await page.waitForFunction(() => !document.getElementById("reset").disabled, null, { timeout: 2000 });
  seen.wheel = !(await reset());
  await page.focus("#canvas");
  await press(page, "0", "Escape");
  seen.right = await press(page, "ArrowRight", "ArrowRight");
  seen.down = await press(page, "ArrowDown");
  seen.end = await press(page, "End");
  seen.plus = await press(page, "+");
  await press(page, "0", "Home", "ArrowUp", "ArrowUp", "ArrowUp");
  seen.enter = await press(page, "Enter");
  const copy = page.locator(".finding button").first();
  if (await copy.count()) {
    await copy.click();
    await page.waitForFunction(() => document.querySelector(".finding button").textContent !== "Copy");
    seen.copy = await copy.textContent();
  }
  return seen;
}

if (command === "check") {
  for (const file of rest) {
    const wide = await open(file, 1280, 900, "light");
    const narrow = await open(file, 360, 800, "dark");
    const width = await narrow.page.evaluate(() => document.documentElement.scrollWidth);
    const drawn = await wide.page.evaluate(() => performance.getEntriesByName("drawn")[0]?.startTime ?? null);
    const sections = await wide.page.evaluate(() => [...document.querySelectorAll("section")].filter((each) => !each.hidden).map((each) => each.id));
    const text = await wide.page.evaluate(() => document.querySelector("main").innerText);
    const seen = await drive(wide);
    const violations = await axe(file, 1280, 900, "light");
    if (seen) violations.push(...(await axe(file, 360, 800, "dark"))); // the small runs would show nothing else
    console.log(JSON.stringify({ file, drawn, width, sections, text, seen, violations, problems: [...wide.problems, ...narrow.problems] }));
    for (const { page } of [wide, narrow]) await page.context().close();
  }
} else {
  const [file, out, width, height, scheme = "light"] = rest;
  const { page } = await open(file, Number(width), Number(height), scheme, false, 1.5);
  await page.screenshot({ path: out });
}
await browser.close();
