package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// An adviser says what to do about an agent's failures. It knows what was typed.
type adviser struct {
	edge     edgeURL
	key      identity.Key
	endToEnd bool
}

// explain returns err, how the agent ended, with its exit code and what to do about it; nil for nil.
func (a adviser) explain(err error) error {
	if err == nil {
		return nil
	}
	if refused, ok := errors.AsType[*agent.RefusedError](err); ok {
		return &cli.Error{
			Err:  fmt.Errorf("refused by %s: %s (%s)", a.edge, refused.Reason, refused.Code),
			Hint: a.refusal(refused),
			Code: codeRefused,
		}
	}
	switch {
	case errors.Is(err, agent.ErrReplaced):
		return &cli.Error{Err: err, Hint: "to serve from both agents, start each with --mode share", Code: codeRefused}
	case errors.Is(err, agent.ErrUnreachable):
		hint := a.noLink(err)
		if hint == "" {
			hint = "check --server; with --wait, the default, the agent keeps trying"
		}
		return &cli.Error{Err: err, Hint: hint, Code: codeUnreachable}
	}
	return err
}

// noLink returns what to do about a link that cannot be had; empty if nothing is known to help.
func (a adviser) noLink(err error) string {
	if answer, ok := errors.AsType[*tunnel.RefusedError](err); ok {
		return a.answer(answer)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		plain := a.edge
		plain.scheme = "http"
		return "it speaks plain HTTP there: --server " + plain.String()
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "give --server a name that the certificate is for"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "if the edge has a certificate of its own making: --ca-file FILE"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
		return "check --server: the DNS knows no " + e.Name
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" { // crypto/tls got an alert
		return "the server may not know the name " + a.edge.host + ": give --server its own domain"
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "check --server: nothing listens there"
	case errors.Is(err, tunnel.ErrNotHARP):
		return a.noHarpd()
	}
	return ""
}

// answer returns what to do about an HTTP answer in place of a link.
func (a adviser) answer(r *tunnel.RefusedError) string {
	secure := a.edge
	secure.scheme = "https"
	to, err := url.Parse(r.Location)
	switch {
	case a.edge.scheme != "http":
	case err == nil && to.Scheme == "https" && strings.EqualFold(to.Hostname(), a.edge.host): // no other host's name is repeated
		secure.port = to.Port()
		return "it speaks HTTPS: --server " + secure.String()
	case r.Status == http.StatusBadRequest:
		return "if that port speaks HTTPS: --server " + secure.String()
	}
	return a.noHarpd()
}

func (a adviser) noHarpd() string { return "is " + a.edge.String() + " a harpd? check --server" }

// refusal returns what to do about a code of messages.RegistrationError; empty if nothing is known to help.
func (a adviser) refusal(e *agent.RefusedError) string {
	if answer, ok := errors.AsType[*tunnel.RefusedError](e); ok {
		return a.answer(answer)
	}
	switch e.Code {
	case messages.RefuseNotAuthorized:
		return "ask the operator to add this line to the file of --authorized-keys: " + a.key.Public().Thumbprint().String()
	case messages.RefuseAudience:
		return "dial the server by its own domain, or ask its operator for --audience " + a.edge.host
	case messages.RefuseHostname:
		return "if a record is named, set it where the domain's DNS is managed and start again; else give another --domain"
	case messages.RefuseLimit, messages.RefuseDraining:
		return "try again later"
	case messages.RefuseUnsupported:
		if a.endToEnd {
			return "--end-to-end needs a server that has HTTPS itself: leave it out, or ask the operator for another --tls than off"
		}
		return "leave out what it cannot do, or ask its operator"
	case "revoked":
		return "ask the operator why the key was taken off the file of --authorized-keys"
	}
	return ""
}
