package env

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
)

// k3sTag is the tag of rancher/k3s for kubernetesVersion: a tag cannot hold "+".
func k3sTag() string { return strings.ReplaceAll(kubernetesVersion, "+", "-") }

const (
	k3sRepository = "rancher/k3s"

	// ownRepository, followed by the environment's id, is used on an engine that
	// has an image under k3sRepository: the true one, or another environment's.
	ownRepository = "k3s-autoscaler-testenv/k3s-"

	// SlowDelay is how long an agent of Env.ImageSlow waits before it joins.
	SlowDelay = "10s"
)

// variants are images with a fault built in, by the suffix of their tag: what
// is changed in the stand-in, and what in the true image, which has a shell.
var variants = map[string]struct{ standIn, real string }{
	"-exits": {
		standIn: `ENV STANDIN_FAIL="this image fails on purpose"`,
		real:    `ENTRYPOINT ["sh", "-c", "echo agent exits at once: this image fails on purpose >&2; exit 1"]`,
	},
	"-slow": {
		standIn: `ENV STANDIN_START_DELAY=` + SlowDelay,
		real:    `ENTRYPOINT ["sh", "-c", "echo Waiting before joining; sleep ` + SlowDelay + `; exec /bin/k3s \"$@\"", "k3s"]`,
	},
	"-stuck": {
		standIn: `ENV STANDIN_START_DELAY=24h`,
		real:    `ENTRYPOINT ["sh", "-c", "echo Waiting before joining; sleep 24h"]`,
	},
}

// importImages loads the stand-in and its variants, and returns the name of the
// former. The image has what the product can see of rancher/k3s: entry point,
// command and anonymous volumes.
func (e *engine) importImages(ctx context.Context, agent, id string) (string, error) {
	name := k3sRepository + ":" + k3sTag()
	if _, err := e.client.ImageInspect(ctx, name); err == nil {
		name = ownRepository + id + ":" + k3sTag()
	} else if !cerrdefs.IsNotFound(err) {
		return "", fmt.Errorf("look for image %s: %w", name, err)
	}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(writeRootFS(writer, agent)) }()
	progress, err := e.client.ImageImport(ctx, image.ImportSource{Source: reader, SourceName: "-"}, name, image.ImportOptions{
		Changes: []string{
			`ENTRYPOINT ["/bin/k3s"]`,
			`CMD ["agent"]`,
			`ENV PATH=/var/lib/rancher/k3s/data/cni:/bin:/bin/aux`,
			`VOLUME ["/var/lib/kubelet", "/var/lib/rancher/k3s", "/var/lib/cni", "/var/log"]`,
			`LABEL ` + label + `=` + id,
		},
	})
	if err != nil {
		_ = reader.Close()
		return "", fmt.Errorf("import image %s: %w", name, err)
	}
	defer progress.Close()
	if _, err := io.Copy(io.Discard, progress); err != nil {
		return "", fmt.Errorf("import image %s: %w", name, err)
	}
	return name, e.deriveVariants(ctx, name, name, id, false)
}

// deriveVariants makes the variants of an image, as name with their suffix.
func (e *engine) deriveVariants(ctx context.Context, base, name, id string, real bool) error {
	created, err := e.client.ContainerCreate(ctx, &container.Config{Image: base}, &container.HostConfig{NetworkMode: "none"}, nil, nil, "")
	if err != nil {
		return fmt.Errorf("derive from image %s: %w", base, err)
	}
	defer func() {
		_ = e.client.ContainerRemove(context.WithoutCancel(ctx), created.ID, container.RemoveOptions{RemoveVolumes: true})
	}()
	for suffix, variant := range variants {
		change := variant.standIn
		if real {
			change = variant.real
		}
		if _, err := e.client.ContainerCommit(ctx, created.ID, container.CommitOptions{
			Reference: name + suffix,
			Changes:   []string{change, "LABEL " + label + "=" + id},
		}); err != nil {
			return fmt.Errorf("derive image %s: %w", name+suffix, err)
		}
	}
	return nil
}

// removeImages removes the environment's images. One that others derive from is
// refused until they are gone, so it goes round as long as that helps.
func (e *engine) removeImages(ctx context.Context, id string) error {
	images, err := e.client.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", label+"="+id))})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for len(images) > 0 {
		var left []image.Summary
		var errs []error
		for _, i := range images {
			_, err := e.client.ImageRemove(ctx, i.ID, image.RemoveOptions{Force: true, PruneChildren: true})
			if err != nil && !cerrdefs.IsNotFound(err) {
				left = append(left, i)
				errs = append(errs, fmt.Errorf("remove image %s: %w", strings.Join(i.RepoTags, " "), err))
			}
		}
		if len(left) == len(images) {
			return errors.Join(errs...)
		}
		images = left
	}
	return nil
}

// writeRootFS writes a file system with one static program.
func writeRootFS(w io.Writer, agent string) error {
	archive := tar.NewWriter(w)
	for _, dir := range []string{"bin/", "etc/", "dev/", "proc/", "sys/", "run/", "tmp/", "var/", "var/lib/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/:/bin/k3s\n",
		"etc/nsswitch.conf": "hosts: files dns\n",
	} {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := io.WriteString(archive, content); err != nil {
			return err
		}
	}
	file, err := os.Open(agent)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/k3s", Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(archive, file); err != nil {
		return err
	}
	return archive.Close()
}
