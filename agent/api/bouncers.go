package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/lictor-ha/lictor/agent/config"
	"github.com/lictor-ha/lictor/agent/printable"
)

// BouncerClient asks bouncers. It has no credentials to show: any session may
// register any URL as a bouncer's. What agents ask a bouncer for it reads in Consul
// itself, where only the leader's session can have written it.
type BouncerClient struct{ http *http.Client }

// NewBouncerClient makes a client that presents the certificate of the section ctl or,
// where that has none, of restapi, and checks a bouncer's as a member's is checked.
func NewBouncerClient(ctl config.Ctl, rest config.RestAPI) (*BouncerClient, error) {
	client, _, err := newHTTPClient(ctl, rest)
	if err != nil {
		return nil, err
	}
	return &BouncerClient{http: client}, nil
}

// Close ends the connections that are kept open.
func (c *BouncerClient) Close() { c.http.CloseIdleConnections() }

// Health returns the status that a bouncer answers a load balancer with.
func (c *BouncerClient) Health(ctx context.Context, url string) (status int, err error) {
	status, _, err = c.do(ctx, http.MethodGet, url, "/health", nil)
	return status, err
}

// PostJSON sends a request to a bouncer and reads the JSON that it answers into into,
// unless that is nil. Any status but 2xx is an error.
func (c *BouncerClient) PostJSON(ctx context.Context, url, path string, body, into any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("POST %s%s: write the request as JSON: %w", url, path, err)
	}
	status, text, err := c.do(ctx, http.MethodPost, url, path, encoded)
	switch {
	case err != nil:
		return err
	case status < 200 || status > 299:
		return fmt.Errorf("%s%s answers %d: %s", url, path, status, printable.Text(string(bytes.TrimSpace(text))))
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s%s: the answer is not JSON of the expected shape: %w", url, path, err)
	}
	return nil
}

func (c *BouncerClient) do(ctx context.Context, method, url, path string, body []byte) (status int, text []byte, err error) {
	target, err := memberURL(url, path)
	if err != nil {
		return 0, nil, fmt.Errorf("a bouncer's url: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: %w", method, target, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("ask a bouncer: %w", err)
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(io.LimitReader(resp.Body, bouncerAnswerLimit+1))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("%s %s: read the answer: %w", method, target, err)
	case len(text) > bouncerAnswerLimit:
		return 0, nil, fmt.Errorf("%s %s: the answer is longer than %d bytes", method, target, bouncerAnswerLimit)
	}
	return resp.StatusCode, text, nil
}

// bouncerAnswerLimit bounds what is read of a bouncer's answer: it is somebody's whom
// nobody vouches for.
const bouncerAnswerLimit = 64 << 10
