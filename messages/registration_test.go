package messages_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

func TestRegistrationRequests(t *testing.T) {
	for _, v := range readVectors(t, "registration.json", "requests") {
		got, err := messages.ParseRegistrationRequest(v.text())
		if err != nil || got.JWS != v.JWS {
			t.Errorf("%s: parsed to %+v, %v, want %q", v.Name, got, err, v.JWS)
			continue
		}
		text, err := messages.EncodeRegistrationRequest(got)
		if err != nil {
			t.Errorf("%s: encode: %v", v.Name, err)
		}
		if again, err := messages.ParseRegistrationRequest(text); err != nil || again != got {
			t.Errorf("%s: read back as %+v, %v, want %+v", v.Name, again, err, got)
		}
	}
}

func TestRegistrationResponses(t *testing.T) {
	for _, v := range readVectors(t, "registration.json", "responses") {
		var want messages.RegistrationResponse
		if err := json.Unmarshal(v.Response, &want); err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		got, err := messages.ParseRegistrationResponse(v.text())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: parsed to %+v, %v, want %+v", v.Name, got, err, want)
			continue
		}
		text, err := messages.EncodeRegistrationResponse(got)
		if err != nil {
			t.Errorf("%s: encode: %v", v.Name, err)
		}
		if again, err := messages.ParseRegistrationResponse(text); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: read back as %+v, %v, want %+v", v.Name, again, err, got)
		}
	}
}

func TestRegistrationsRefused(t *testing.T) {
	for _, v := range readVectors(t, "registration.json", "refuse") {
		var err error
		switch v.Expect {
		case "RegistrationRequest":
			_, err = messages.ParseRegistrationRequest(v.text())
		case "RegistrationResponse":
			_, err = messages.ParseRegistrationResponse(v.text())
		default:
			t.Fatalf("%s: expects %q, which is no text message", v.Name, v.Expect)
		}
		if !errors.Is(err, messages.ErrMalformed) {
			t.Errorf("%s as %s: %v, want ErrMalformed", v.Name, v.Expect, err)
		} else if len(err.Error()) > 300 {
			t.Errorf("%s as %s: the error repeats too much of what was sent: %d bytes", v.Name, v.Expect, len(err.Error()))
		}
	}
}

func TestLimitsAreRead(t *testing.T) {
	r, err := messages.ParseRegistrationResponse([]byte(`{"type":"RegistrationResponse","registration":1,"hostname":"a",` +
		`"limits":{"max_body":512000,"max_streams":1000,"request_timeout":"1m30.5s","ping_interval":"250ms"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := messages.Limits{
		MaxBody: 512_000, MaxStreams: 1000,
		RequestTimeout: messages.Duration(90*time.Second + 500*time.Millisecond), PingInterval: messages.Duration(250 * time.Millisecond),
	}
	if r.Limits == nil || *r.Limits != want {
		t.Errorf("limits are %+v, want %+v", r.Limits, want)
	}
}

func TestTextTooLong(t *testing.T) {
	long := strings.Repeat("x", messages.MaxText)
	if _, err := messages.EncodeRegistrationRequest(messages.RegistrationRequest{JWS: long}); !errors.Is(err, messages.ErrTooLong) {
		t.Errorf("request of more than MaxText bytes: %v, want ErrTooLong", err)
	}
	refusal := messages.RegistrationResponse{Error: &messages.RegistrationError{Code: messages.RefuseLimit, Message: long}}
	if _, err := messages.EncodeRegistrationResponse(refusal); !errors.Is(err, messages.ErrTooLong) {
		t.Errorf("response of more than MaxText bytes: %v, want ErrTooLong", err)
	}
}
