package tunnel

import (
	"net/http"
	"strings"

	"github.com/harp-tunnel/harp/messages"
)

// A FieldsHandler is an http.Handler that can take the header fields of a request as they came over the link. The maps
// that this spares, here and with FieldsWriter, and their way through the garbage collector, took 9 % of the agent's CPU time.
type FieldsHandler interface {
	http.Handler
	// ServeFields is ServeHTTP for a request without a body. r has no Header and no URL: fields is what Header would hold,
	// RequestURI begins with a slash and has no escapes, so that URL would say nothing else.
	ServeFields(w http.ResponseWriter, r *http.Request, fields messages.Fields)
	// Self returns the handler itself, a pointer. A handler that embeds it returns another than itself; it may have a
	// ServeHTTP of its own, which then gets all requests.
	Self() http.Handler
}

// A FieldsWriter is an http.ResponseWriter that takes header fields as they go over the link. What handlers at the agent
// get is one, unless it is wrapped.
type FieldsWriter interface {
	http.ResponseWriter
	// WriteFields is WriteHeader for a final status other than 101 with the header that fields hold, in the form of
	// messages.AppendField. No field is left out or added but Content-Length: so there must be none that is hop-by-hop or
	// announces trailers, and none whose name or value is not valid. length is what Content-Length says; -1 if it is not
	// there. It reports false, and has done nothing, if Header is not empty or it is too late. fields is not kept.
	WriteFields(status int, length int64, fields []byte) bool
}

// HeaderOf returns what Request.Header would hold, with names in canonical form.
func HeaderOf(fields messages.Fields) http.Header { return decodeHeader(fields) }

// fieldsHandler returns the handler if x can go to its ServeFields; else nil.
func (x *service) fieldsHandler() FieldsHandler {
	h, ok := x.handler.(FieldsHandler)
	if !ok || h.Self() != x.handler || x.flags&messages.FlagEnd == 0 || x.kind != messages.TypeBody || x.head.Target[0] != '/' ||
		strings.IndexByte(x.head.Target, '%') >= 0 {
		return nil
	}
	return h
}
