package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"
	"github.com/stretchr/testify/require"
)

func TestEachMistakeAboutTheBusIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	user, err := nkeys.CreateUser()
	require.NoError(t, err)
	seed, err := user.Seed()
	require.NoError(t, err)
	for name, text := range map[string]string{
		"secret": "sesame\n", "empty": "\n", "huge": strings.Repeat("x", maxSecretFile+1), "seed": string(seed) + "\n", "pem": "x",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	external := "url: 'nats://a:4222', "
	for bus, want := range map[string]string{
		"url: 'nats://a:4222,redis://b'":                                  `bus.url: "redis://b" is no address of a NATS server`,
		"url: 'nats://a:4222,'":                                           `bus.url: "" is no address of a NATS server`,
		"url: 'nats://a, nats://a'":                                       `bus.url: "nats://a" stands there twice`,
		"url: 'nats://a,wss://b'":                                         `bus.url: mixes WebSocket and other addresses`,
		external + "nkey_file: seed, token_file: secret":                  `bus.token_file: stands beside bus.nkey_file, expected one way to log in to NATS`,
		external + "user: me":                                             `bus.user: has no password, expected bus.password_file beside it`,
		external + "password_file: secret":                                `bus.password_file: is the password of nobody, expected bus.user beside it`,
		external + "user: me, password_file: empty":                       `empty is empty, expected a file with a password`,
		external + "token_file: huge":                                     `has more than 65536 bytes, which is no secret`,
		external + "nkey_file: secret":                                    `secret holds something else, expected a seed of a user NKey`,
		external + "credentials_file: seed":                               `seed holds something else, expected a .creds file`,
		external + "tls: {cert_file: pem}":                                `bus.tls.cert_file: has no private key, expected bus.tls.key_file beside it`,
		external + "tls: {key_file: pem}":                                 `bus.tls.key_file: is the key of no certificate, expected bus.tls.cert_file beside it`,
		"provisioned: true":                                               `bus.provisioned: is for an external NATS cluster, expected bus.url beside it`,
		"embedded: {token_file: secret}":                                  `bus.embedded.token_file: is for others that connect, expected bus.embedded.listen beside it`,
		"embedded: {listen: '0.0.0.0:4222'}":                              `bus.embedded.listen: is "0.0.0.0:4222", which other machines reach, and asks for no token`,
		"embedded: {listen: '0.0.0.0:4222', token_file: empty}":           `bus.embedded.token_file: file ` + filepath.Join(dir, "empty") + ` is empty`,
		"embedded: {listen: '127.0.0.1:4222', tls: {cert_file: missing}}": `bus.embedded.tls.key_file`,
	} {
		_, err := Parse("c.yaml", []byte(minimal+"bus: {"+bus+"}"), dir)
		require.ErrorContains(t, err, want, bus)
		require.NotContains(t, err.Error(), "sesame", "no secret in a message")
	}
	for _, bus := range []string{
		"url: 'tls://a:4222, tls://b:4222', nkey_file: seed, provisioned: true, replicas: 3, tls: {ca_file: pem, cert_file: pem, key_file: pem}",
		"url: 'nats://a:4222', user: me, password_file: secret",
		"embedded: {listen: '0.0.0.0:4222', token_file: secret, tls: {cert_file: pem, key_file: pem}}",
		"embedded: {listen: '127.0.0.1:4222'}",
	} {
		_, err := Parse("c.yaml", []byte(minimal+"bus: {"+bus+"}"), dir)
		require.NoError(t, err, bus)
	}
	c, err := Parse("c.yaml", []byte(minimal+"bus: {url: 'nats://a:4222', token_file: secret}"), dir)
	require.NoError(t, err)
	var keys []string
	for _, w := range c.Warnings() {
		keys = append(keys, w.Key)
	}
	require.Contains(t, keys, "bus.url", "a secret travels unencrypted")
}
