// Where things lie.
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const contractsFolder = dirname(dirname(fileURLToPath(import.meta.url)));
export const repository = dirname(contractsFolder);

/** The user's cache: what can be made or fetched again. */
export function cacheFolder() {
  const base = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  return join(base, "computepool", "contracts");
}
