// Superfluid's compiled contracts, from its own npm package: fetched once into the user's cache, refused if a single
// byte differs, never committed (its logic files are under the AGPL). `npm pack` brings the package alone; as a
// dependency it would drag in 770 MB.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { cacheFolder } from "./folders.mjs";

const NAME = "@superfluid-finance/ethereum-contracts";
const VERSION = "1.15.2";
const INTEGRITY = "sha512-pvNZvjR72VNdVsUyk0AEsyU8nhk3ClFI9IDfpDVgHaeupugUzrtrsWAwr8s9iAbNgC7uS4e3/kz1Afd+aK5H7Q==";
const UNPACKED = ["package/build/hardhat/contracts", "package/dev-scripts/artifacts/ERC1820Registry.json"];

export const superfluidPin = `${NAME}@${VERSION} ${INTEGRITY}`;

export class SuperfluidPackage {
  #folder;

  constructor() {
    this.#folder = join(cacheFolder(), `superfluid-${VERSION}`);
    if (!existsSync(this.#folder)) fetchInto(this.#folder);
  }

  /** {abi, bytecode, linkReferences} of a contract: `artifact("superfluid/Superfluid.sol")`. */
  artifact(file, name = file.slice(file.lastIndexOf("/") + 1, -".sol".length)) {
    return JSON.parse(readFileSync(join(this.#folder, UNPACKED[0], file, `${name}.json`), "utf8"));
  }

  /** Creation code of the ERC-1820 registry, as it lies in the transaction of its standard. */
  get erc1820Code() {
    return JSON.parse(readFileSync(join(this.#folder, UNPACKED[1]), "utf8")).bin;
  }
}

function fetchInto(folder) {
  mkdirSync(cacheFolder(), { recursive: true });
  const work = mkdtempSync(join(cacheFolder(), "fetching-"));
  try {
    console.error(`Fetching ${NAME} ${VERSION} (14 MB) into the cache.`);
    execFileSync("npm", ["pack", `${NAME}@${VERSION}`, "--pack-destination", work, "--silent"], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    const [archive] = readdirSync(work).filter((name) => name.endsWith(".tgz"));
    const found = `sha512-${createHash("sha512").update(readFileSync(join(work, archive))).digest("base64")}`;
    if (found !== INTEGRITY) throw new Error(`${NAME} ${VERSION} is not the package that was pinned: its hash is ${found}`);
    execFileSync("tar", ["-xzf", archive, ...UNPACKED], { cwd: work });
    rmSync(join(work, archive));
    try {
      renameSync(work, folder);
    } catch (error) {
      // Somebody else was quicker; theirs passed the same check.
      if (!existsSync(folder)) throw error;
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
