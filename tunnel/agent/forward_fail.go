package agent

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/harp-tunnel/harp/messages"
)

// A forwardFailure says why a request got no answer, or not all of it.
type forwardFailure struct {
	code   messages.CancelCode
	reason string // for a person
	err    error  // the cause, if there is one
}

func (e *forwardFailure) Error() string { return e.reason }
func (e *forwardFailure) Unwrap() error { return e.err }

// status is the answer where nobody else makes one of the code.
func (e *forwardFailure) status() int {
	switch e.code {
	case messages.CancelProtocol:
		return http.StatusBadRequest
	case messages.CancelTooLarge:
		return http.StatusRequestEntityTooLarge
	case messages.CancelTimeout:
		return http.StatusGatewayTimeout
	case messages.CancelUnsupported:
		return http.StatusNotImplemented
	}
	return http.StatusBadGateway
}

// dialError makes a failure of what dial returned.
func dialError(err error) *forwardFailure {
	code := messages.CancelUnreachable
	if dial := (*dialFailure)(nil); !errors.As(err, &dial) {
		code = messages.CancelAborted // the visitor left, which fail finds out
	}
	return &forwardFailure{code: code, reason: err.Error(), err: err}
}

// brokenError makes a failure of an upstream that did not answer as it should; what says what it did not.
func brokenError(what string, err error) *forwardFailure {
	var why string
	switch {
	case err == nil:
		why = what
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		why = what + ": it closed the connection"
	default:
		why = what + ": " + shortReason(err)
	}
	return &forwardFailure{code: messages.CancelBroken, reason: "the upstream " + why, err: err}
}

// bodyError makes a failure of a request body that could not be read to its end.
func bodyError(err error) *forwardFailure {
	code := messages.CancelAborted
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		code = messages.CancelTooLarge
	}
	return &forwardFailure{code: code, reason: "the request body broke off: " + err.Error(), err: err}
}

// visitorError makes a failure of a response that could not be passed on.
func visitorError(err error) *forwardFailure {
	return &forwardFailure{code: messages.CancelAborted, reason: "the visitor took no more: " + err.Error(), err: err}
}

// asFailure returns the failure that err is.
func asFailure(err error) *forwardFailure {
	if failure, ok := err.(*forwardFailure); ok {
		return failure
	}
	panic("agent: BUG: forwarding failed with " + err.Error())
}

// fail lets the visitor know of a failure in the way that is still open.
func (v *forwardVisitor) fail(failure *forwardFailure) {
	if v.headSent {
		v.flush()
		panic(http.ErrAbortHandler)
	}
	if v.gone() {
		if v.r.Context().Err() != context.DeadlineExceeded {
			panic(http.ErrAbortHandler) // nobody is there to be told
		}
		failure = &forwardFailure{code: messages.CancelTimeout, reason: "the upstream did not answer in time"}
	}
	if t, ok := capability[interface {
		Fail(code messages.CancelCode, reason string)
	}](v.w); ok {
		t.Fail(failure.code, failure.reason)
		return
	}
	if failure.code == messages.CancelAborted {
		panic(http.ErrAbortHandler)
	}
	if v.plan.body != bodyNone {
		v.closeAfter()
	}
	http.Error(v.w, failure.reason, failure.status())
}
