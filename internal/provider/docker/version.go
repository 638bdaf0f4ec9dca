package docker

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/distribution/reference"

	"github.com/k3s-autoscaler/k3s-autoscaler/internal/provider"
)

// maxMinorSkew is how many minor versions an agent may be older than its
// server: the version skew policy of Kubernetes for kubelet and API server.
const maxMinorSkew = 3

// k3sVersion matches a server's version ("v1.34.4+k3s1"), the tag of an image
// ("v1.34.4-k3s1", "v1.34.4-rc1-k3s1", "v1.34.4-k3s1-arm64"), and a version
// without a k3s revision.
var k3sVersion = regexp.MustCompile(`^v?(\d+)\.(\d+)\.(\d+)(?:-(alpha|beta|rc)\.?(\d+))?(?:[+-]k3s(\d+))?(?:[-.][0-9A-Za-z_.-]+)?$`)

// release is a parsed k3s version, ordered by compare.
type release struct {
	major, minor, patch int
	stage               int // 0 alpha, 1 beta, 2 rc, 3 released
	stageNumber         int
	k3s                 int // revision of k3s; -1: not given
}

func parseRelease(version string) (release, bool) {
	m := k3sVersion.FindStringSubmatch(version)
	if m == nil {
		return release{}, false
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			return -1 // not given
		}
		return n
	}
	r := release{major: number(m[1]), minor: number(m[2]), patch: number(m[3]), stage: 3, stageNumber: number(m[5]), k3s: number(m[6])}
	for i, s := range []string{"alpha", "beta", "rc"} {
		if m[4] == s {
			r.stage = i
		}
	}
	return r, true
}

// compare orders releases; where one of them has no k3s revision, revisions do
// not count.
func (r release) compare(o release) int {
	c := cmp.Or(cmp.Compare(r.major, o.major), cmp.Compare(r.minor, o.minor), cmp.Compare(r.patch, o.patch),
		cmp.Compare(r.stage, o.stage), cmp.Compare(r.stageNumber, o.stageNumber))
	if c == 0 && r.k3s >= 0 && o.k3s >= 0 {
		return cmp.Compare(r.k3s, o.k3s)
	}
	return c
}

// errServerVersionUnknown is not a refusal: the version comes with the next
// observation of the cluster.
var errServerVersionUnknown = errors.New("the server's version is not known yet, so no image can be chosen that is not newer")

// validateImage looks at what can be judged without knowing the server.
func (o Options) validateImage() error {
	if o.Image == ImageAuto {
		if named, err := reference.ParseNormalizedNamed(o.Repository); err != nil || !reference.IsNameOnly(named) {
			return fmt.Errorf("repository: is %q, expected a name without a tag, e.g. %s", o.Repository, DefaultRepository)
		}
		return nil
	}
	tag, err := imageTag(o.Image)
	if err != nil {
		return err
	}
	if _, ok := parseRelease(tag); !ok && !o.AllowUnversionedImage {
		return unversioned(o.Image)
	}
	return nil
}

func imageTag(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("image: is %q, expected %s or a reference such as %s:v1.34.4-k3s1: %w", image, ImageAuto, DefaultRepository, err)
	}
	if tagged, ok := named.(reference.Tagged); ok {
		return tagged.Tag(), nil
	}
	return "", nil
}

func unversioned(image string) error {
	return fmt.Errorf("image: the tag of %q is not a k3s version, so it can't be compared with the server's; use %s, a tag such as v1.34.4-k3s1, or allow unversioned images", image, ImageAuto)
}

// image chooses the image for an agent of a server, which it must not be newer
// than. Refusals wrap provider.ErrRefused.
func (o Options) image(server string) (string, error) {
	if o.Image != ImageAuto && o.AllowUnversionedImage {
		if tag, err := imageTag(o.Image); err == nil {
			if _, ok := parseRelease(tag); !ok {
				return o.Image, nil
			}
		}
	}
	if server == "" {
		return "", errServerVersionUnknown
	}
	srv, ok := parseRelease(server)
	if !ok {
		return "", fmt.Errorf("%w: image: the server's version %q is not a k3s version; name an image and allow unversioned images", provider.ErrRefused, server)
	}
	if o.Image == ImageAuto {
		if srv.k3s < 0 {
			return "", fmt.Errorf("%w: image: the server's version %q has no k3s revision, so no image matches it; name an image with a tag such as %s-k3s1", provider.ErrRefused, server, server)
		}
		return o.Repository + ":" + strings.ReplaceAll(server, "+", "-"), nil
	}
	tag, err := imageTag(o.Image)
	if err != nil {
		return "", fmt.Errorf("%w: %w", provider.ErrRefused, err)
	}
	img, ok := parseRelease(tag)
	switch {
	case !ok:
		return "", fmt.Errorf("%w: %w", provider.ErrRefused, unversioned(o.Image))
	case img.compare(srv) > 0:
		return "", fmt.Errorf("%w: image %s is newer than the server (%s); use %s or a tag that is not newer", provider.ErrRefused, o.Image, server, ImageAuto)
	case img.major != srv.major || srv.minor-img.minor > maxMinorSkew:
		return "", fmt.Errorf("%w: image %s is more than %d minor versions older than the server (%s), which Kubernetes does not support", provider.ErrRefused, o.Image, maxMinorSkew, server)
	}
	return o.Image, nil
}
