package env

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

//go:embed join.yaml
var joinAccess []byte

const (
	readerAccount = "k3s-autoscaler-reader"
	actorAccount  = "k3s-autoscaler-actor"

	accountTokenLife = 24 * time.Hour
	fieldManager     = "testenv"
)

// accessKinds are the kinds that are applied of the product's manifests, in the
// order in which they need each other.
var accessKinds = []struct{ kind, group, resource string }{
	{"Namespace", "", "namespaces"},
	{"ServiceAccount", "", "serviceaccounts"},
	{"ClusterRole", "rbac.authorization.k8s.io", "clusterroles"},
	{"Role", "rbac.authorization.k8s.io", "roles"},
	{"ClusterRoleBinding", "rbac.authorization.k8s.io", "clusterrolebindings"},
	{"RoleBinding", "rbac.authorization.k8s.io", "rolebindings"},
}

// accessObjects returns the objects of accessKinds among YAML documents, sorted
// by kind.
func accessObjects(documents ...[]byte) ([]unstructured.Unstructured, error) {
	var objects []unstructured.Unstructured
	for _, content := range documents {
		for document := range strings.SplitSeq("\n"+string(content), "\n---") {
			var object unstructured.Unstructured
			if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
				return nil, fmt.Errorf("parse a manifest: %w", err)
			}
			if object.Object != nil && kindIndex(object) >= 0 {
				objects = append(objects, object)
			}
		}
	}
	slices.SortStableFunc(objects, func(a, b unstructured.Unstructured) int { return kindIndex(a) - kindIndex(b) })
	return objects, nil
}

func kindIndex(object unstructured.Unstructured) int {
	for i, known := range accessKinds {
		if object.GetKind() == known.kind && object.GroupVersionKind().Group == known.group {
			return i
		}
	}
	return -1
}

// productAccess returns the product's own accounts and rights from
// deploy/kubernetes, so that the tests run with what operators apply.
func productAccess(repository string) ([]unstructured.Unstructured, error) {
	dir := filepath.Join(repository, "deploy", "kubernetes")
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var documents [][]byte
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		documents = append(documents, content)
	}
	objects, err := accessObjects(documents...)
	if err != nil {
		return nil, fmt.Errorf("read the manifests in %s: %w", dir, err)
	}
	for _, account := range []string{readerAccount, actorAccount} {
		if findAccount(objects, account) == "" {
			return nil, fmt.Errorf("the manifests in %s define no service account %s", dir, account)
		}
	}
	return objects, nil
}

// findAccount returns the namespace of a service account, or "".
func findAccount(objects []unstructured.Unstructured, name string) (namespace string) {
	for _, object := range objects {
		if object.GetKind() == "ServiceAccount" && object.GetName() == name {
			return object.GetNamespace()
		}
	}
	return ""
}

// grantAccess applies the rights of the join token and of the product, and
// writes the product's two kubeconfigs, which lead through server.
func (e *Env) grantAccess(ctx context.Context, repository, server string, caPEM []byte) error {
	config, err := clientcmd.BuildConfigFromFlags("", e.AdminKubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 100, 200
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	objects, err := productAccess(repository)
	if err != nil {
		return err
	}
	all := objects
	if !e.RealK3s {
		join, err := accessObjects(joinAccess)
		if err != nil {
			return err
		}
		all = append(join, objects...)
	}
	for _, object := range all {
		if err := apply(ctx, dynamicClient, object); err != nil {
			return err
		}
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for account, file := range map[string]string{readerAccount: e.ReaderKubeconfig, actorAccount: e.ActorKubeconfig} {
		seconds := int64(accountTokenLife.Seconds())
		token, err := client.CoreV1().ServiceAccounts(findAccount(objects, account)).CreateToken(ctx, account,
			&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("get a token for %s: %w", account, err)
		}
		if err := writeKubeconfig(file, server, caPEM, &clientcmdapi.AuthInfo{Token: token.Status.Token}); err != nil {
			return err
		}
	}
	return nil
}

// apply waits out the moment after the API server's start in which a namespace
// does not exist yet.
func apply(ctx context.Context, client dynamic.Interface, object unstructured.Unstructured) error {
	known := accessKinds[kindIndex(object)]
	var resource dynamic.ResourceInterface = client.Resource(schema.GroupVersionResource{
		Group: known.group, Version: object.GroupVersionKind().Version, Resource: known.resource,
	})
	if namespace := object.GetNamespace(); namespace != "" {
		resource = resource.(dynamic.NamespaceableResourceInterface).Namespace(namespace)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := resource.Apply(ctx, object.GetName(), &object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		if err == nil {
			return nil
		}
		if !apierrors.IsNotFound(err) || time.Now().After(deadline) {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
