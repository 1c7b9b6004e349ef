package messages_test

import "github.com/harp-tunnel/harp/messages"

// A browser's request and an application's answer, with twelve fields each.
var (
	typicalRequest = messages.HTTPRequest{
		Registration: 1, Method: "GET", Scheme: "https",
		Authority: "4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com",
		Target:    "/api/v1/items?limit=50&after=a%2Fb", Visitor: "203.0.113.77:51820",
	}
	requestFields = [12][2]string{
		{"User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"},
		{"Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
		{"Accept-Language", "en-GB,en;q=0.5"}, {"Accept-Encoding", "gzip, deflate, br, zstd"},
		{"Cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"}, {"Referer", "https://www.example.com/"},
		{"Sec-Fetch-Dest", "document"}, {"Sec-Fetch-Mode", "navigate"}, {"X-Forwarded-For", "203.0.113.77"},
		{"X-Forwarded-Proto", "https"}, {"X-Forwarded-Host", "tunnels.example.com"}, {"X-Request-Id", "01J9ZK3V7M8Q"},
	}
	typicalResponse = messages.HTTPResponse{Status: 200}
	responseFields  = [12][2]string{
		{"Content-Type", "application/json; charset=utf-8"}, {"Content-Length", "1024"},
		{"Date", "Thu, 20 Nov 2025 12:00:00 GMT"}, {"Server", "nginx"}, {"Cache-Control", "private, max-age=0"},
		{"Etag", `"33a64df551425fcc55e4d42a148795d9f25f89d4"`}, {"Vary", "Accept-Encoding, Cookie"},
		{"Set-Cookie", "session=0123456789abcdef0123456789abcdef; Path=/; HttpOnly; Secure"},
		{"Set-Cookie", "theme=dark; Path=/"}, {"X-Content-Type-Options", "nosniff"},
		{"Strict-Transport-Security", "max-age=31536000"}, {"X-Request-Id", "01J9ZK3V7M8Q"},
	}
)

func appendRequest(b []byte) []byte {
	start := len(b)
	b = messages.BeginHTTPRequest(b, messages.TypeHTTPRequest, messages.FlagEnd, 1, &typicalRequest)
	for i := range requestFields {
		b = messages.AppendField(b, requestFields[i][0], requestFields[i][1])
	}
	b, err := messages.Finish(b, start)
	if err != nil {
		panic(err)
	}
	return b
}

func appendResponse(b []byte) []byte {
	start := len(b)
	b = messages.BeginHTTPResponse(b, messages.TypeHTTPResponse, 0, 1, &typicalResponse)
	for i := range responseFields {
		b = messages.AppendField(b, responseFields[i][0], responseFields[i][1])
	}
	b, err := messages.Finish(b, start)
	if err != nil {
		panic(err)
	}
	return b
}

// countFields ranges over all of f, and returns how many bytes that were.
func countFields(f messages.Fields) (n int) {
	for name, value := range f.All() {
		n += len(name) + len(value)
	}
	return n
}
