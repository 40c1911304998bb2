"""A WebRTC peer by aiortc: reads an offer from standard input, writes its answer to standard output, and sends every
message back on the channel it came by. Ends when standard input does."""

import asyncio
import json
import sys

from aiortc import RTCPeerConnection, RTCSessionDescription


async def main() -> None:
    connection = RTCPeerConnection()

    @connection.on("datachannel")
    def opened(channel) -> None:
        channel.on("message", channel.send)

    offer = json.loads(sys.stdin.readline())
    await connection.setRemoteDescription(RTCSessionDescription(sdp=offer["sdp"], type=offer["type"]))
    await connection.setLocalDescription(await connection.createAnswer())
    answer = connection.localDescription
    print(json.dumps({"type": answer.type, "sdp": answer.sdp}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await connection.close()


asyncio.run(main())
