// node -e SCRIPT WINDOW MILLISECONDS CLIENT_CPU SERVER_CPU
// Prints the round trips in ns (window 1), or the requests a second.
const { spawn, execFileSync } = require("child_process");

const pin = (cpu) => execFileSync("taskset", ["-apc", cpu, String(process.pid)], { stdio: "ignore" });

if (process.send) {
  // The child: it echoes, and ends when the channel does.
  pin(process.argv[1]);
  process.on("message", (message) => process.send(message));
  process.send("ready");
} else {
  const [windowSize, milliseconds] = process.argv.slice(1, 3).map(Number);
  pin(process.argv[3]);
  const stdio = ["ignore", "inherit", "inherit", "ipc"];
  const child = spawn(process.execPath, [...process.execArgv, process.argv[4]], { stdio });
  const text = "n".repeat(56);
  // Answers before the clock starts.
  const warmUp = 300;
  const times = [];
  let number = 0, answered = 0, begun = 0n, sentAt = 0n;
  const make = (n) => String(n).padStart(8, "0") + text;
  const send = () => { sentAt = process.hrtime.bigint(); child.send(make(number++)); };
  child.on("message", (message) => {
    const now = process.hrtime.bigint();
    if (message === "ready") {
      for (let i = 0; i < windowSize; i++) send();
      return;
    }
    if (message !== make(answered++)) { console.error("wrong answer"); process.exit(1); }
    if (answered === warmUp) begun = now;
    if (answered > warmUp && windowSize === 1) times.push(now - sentAt);
    const ns = now - begun;
    if (answered > warmUp && ns > BigInt(milliseconds) * 1000000n) {
      child.kill();
      const rate = String(Math.round((answered - warmUp) / (Number(ns) / 1e9)));
      process.stdout.write(windowSize === 1 ? times.join(" ") : rate, () => process.exit(0));
      child.removeAllListeners("message");
    } else {
      send();
    }
  });
}
