package tls

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

const maxReason = 400 // bytes of one

// Explain says in one line why an authority gave no certificate: the authority's own words if it gave any, else what kept
// us from asking it.
func Explain(err error) string {
	var problem acme.Problem
	var failed *url.Error
	switch {
	case errors.As(err, &problem):
		text := strings.TrimPrefix(problem.Type, "urn:ietf:params:acme:error:") + ": " + problem.Detail
		for _, sub := range problem.Subproblems {
			if sub.Detail != problem.Detail {
				text += "; " + sub.Detail
			}
		}
		return oneLine(text)
	case errors.As(err, &failed):
		host := failed.URL
		if u, err := url.Parse(failed.URL); err == nil && u.Host != "" {
			host = u.Host
		}
		return oneLine(host + " cannot be reached: " + failed.Err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return "it took longer than " + attemptTime.String()
	}
	return oneLine(innermost(err).Error())
}

// innermost leaves out what certmagic says around an error: the name, twice.
func innermost(err error) error {
	for strings.HasPrefix(err.Error(), "[") {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		err = inner
	}
	return err
}

// oneLine makes what strangers wrote fit for a terminal and a log.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	text = strings.Trim(text, ": ")
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}
