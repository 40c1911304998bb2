// Speaks the two sentences of the native compiler that forge uses: `--version`, and standard JSON on stdin.
const solc = require("solc");

if (process.argv.includes("--version")) {
  process.stdout.write(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}\n`);
} else {
  let input = "";
  process.stdin.setEncoding("utf8");
  process.stdin.on("data", (piece) => (input += piece));
  process.stdin.on("end", () => process.stdout.write(solc.compile(input), () => process.exit(0)));
}
