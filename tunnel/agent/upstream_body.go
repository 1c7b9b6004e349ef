package agent

import "io"

// A responseBody takes the body of one response out of a connection: take returns what is there, more waits.
type responseBody struct {
	kind   bodyFraming
	remain int64 // bytes of a sized body
	chunks chunkDecoder
}

// take returns what has come already; the piece is valid until more. done says that the body has ended with it, but
// for the trailers of a chunked one. An error comes only without a piece.
func (b *responseBody) take(in *upstreamInbox) (piece []byte, done bool, err error) {
	switch b.kind {
	case framingNone:
		return nil, true, nil
	case framingSized:
		piece = in.unread()
		if int64(len(piece)) > b.remain {
			piece = piece[:b.remain]
		}
		b.remain -= int64(len(piece))
		in.skip(len(piece))
		return piece, b.remain == 0, nil
	case framingChunked:
		piece, used, err := b.chunks.decode(in.unread())
		in.skip(used)
		return piece, b.chunks.state == chunkLast, err
	}
	piece = in.unread()
	in.skip(len(piece))
	return piece, false, nil
}

// more waits for bytes. done says that the connection's clean end was the body's too; if it was not, the error is
// io.ErrUnexpectedEOF.
func (b *responseBody) more(in *upstreamInbox) (done bool, err error) {
	err = in.fill(largeBuffer)
	if err == io.EOF {
		if b.kind == framingUntilClose {
			return true, nil
		}
		err = io.ErrUnexpectedEOF
	}
	return false, err
}
