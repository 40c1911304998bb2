// A WebRTC peer by node-datachannel (libdatachannel): reads an offer from standard input, writes its answer to
// standard output, and sends every message back on the channel it came by. Ends when standard input does.
import readline from 'node:readline';
import nodeDataChannel from 'node-datachannel';

const connection = new nodeDataChannel.PeerConnection('echo', { iceServers: [] });
const channels = [];
let answered = false;

connection.onGatheringStateChange((state) => {
  if (state === 'complete' && !answered) {
    answered = true;
    const { type, sdp } = connection.localDescription();
    console.log(JSON.stringify({ type, sdp }));
  }
});
connection.onDataChannel((channel) => {
  channels.push(channel);
  channel.onMessage((message) => channel.sendMessageBinary(Buffer.from(message)));
});

const lines = readline.createInterface({ input: process.stdin });
lines.once('line', (line) => connection.setRemoteDescription(JSON.parse(line).sdp, 'offer'));
lines.once('close', () => {
  connection.close();
  nodeDataChannel.cleanup();
});
