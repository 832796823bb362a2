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

// BouncerHealth is what a bouncer says of itself.
type BouncerHealth struct {
	// Healthy: a load balancer may send it clients; else Reasons say why not.
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons"`
	// Warnings are what is wrong with its configuration and takes nothing from clients.
	Warnings []string `json:"warnings"`
}

// BouncerStatus is what a bouncer says when it is asked for all that it knows.
type BouncerStatus struct {
	Health BouncerHealth `json:"health"`
	// Problems are what cannot be followed or offered, by what it is: a shard, a key in Consul, a file.
	Problems map[string]string `json:"problems"`
}

// Status asks a bouncer for its health and problems.
func (c *BouncerClient) Status(ctx context.Context, url string) (BouncerStatus, error) {
	var s BouncerStatus
	return s, c.json(ctx, http.MethodGet, url, "/status", nil, bouncerStatusLimit, &s)
}

// PostJSON sends a request to a bouncer and reads the JSON that it answers into into,
// unless that is nil. Any status but 2xx is an error.
func (c *BouncerClient) PostJSON(ctx context.Context, url, path string, body, into any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("POST %s%s: write the request as JSON: %w", url, path, err)
	}
	return c.json(ctx, http.MethodPost, url, path, encoded, bouncerAnswerLimit, into)
}

func (c *BouncerClient) json(ctx context.Context, method, url, path string, body []byte, limit int64, into any) error {
	status, text, err := c.do(ctx, method, url, path, body, limit)
	switch {
	case err != nil:
		return err
	case status < 200 || status > 299:
		return fmt.Errorf("%s%s answers %d: %s", url, path, status, printable.Text(string(bytes.TrimSpace(text))))
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s%s: the answer is not JSON of the expected shape: %w", url, path, printable.Error(err))
	}
	return nil
}

func (c *BouncerClient) do(ctx context.Context, method, url, path string, body []byte, limit int64) (status int, text []byte, err error) {
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
	text, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("%s %s: read the answer: %w", method, target, err)
	case int64(len(text)) > limit:
		return 0, nil, fmt.Errorf("%s %s: the answer is longer than %d bytes", method, target, limit)
	}
	return resp.StatusCode, text, nil
}

// Bytes that are read of a bouncer's answer: it is somebody's whom nobody vouches for.
const (
	bouncerAnswerLimit = 64 << 10
	// bouncerStatusLimit is for /status, in which a shard takes some 400 bytes.
	bouncerStatusLimit = 8 << 20
)
