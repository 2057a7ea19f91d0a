"""Where clients come in: sockets, the TCP dialects, HTTP, WebSocket. Each door is thin: bytes to a session and back."""
