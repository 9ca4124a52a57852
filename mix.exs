# Mix needs this compiler before it compiles anything, also when this project is a dependency.
Code.require_file("lib/mix/tasks/compile.barytherium_native.exs", __DIR__)

defmodule Barytherium.MixProject do
  use Mix.Project

  @version "1.0.0"
  # Its releases have the native libraries.
  @source_url "https://github.com/barytherium/barytherium_native"

  def project do
    [
      app: :barytherium,
      version: @version,
      elixir: "~> 1.14",
      compilers: [:barytherium_native | Mix.compilers()],
      elixirc_paths: elixirc_paths(Mix.env()),
      # Scripts and helpers of the tests. Without this, Elixir from 1.19 on warns of them.
      test_ignore_filters: [~r"^test/(support|fixtures)/"],
      start_permanent: Mix.env() == :prod,
      description: "A STOMP client whose parser and receive loop are native code",
      package: package(),
      source_url: @source_url,
      releases: releases(),
      deps: []
    ]
  end

  def application do
    [extra_applications: [:logger, :ssl]]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # A program for people who have no Mix project, and perhaps no Erlang; see script/tail-release.
  defp releases do
    [
      stomp_tail: [
        include_executables_for: [:unix],
        overlays: ["script/overlays"],
        steps: [:assemble, :tar]
      ]
    ]
  end

  defp package do
    [
      licenses: ["MIT"],
      links: %{"GitHub" => @source_url},
      # Only a package has the checksum file: `script/package` makes it of a release's archives.
      files:
        ~w(lib native guides .cargo Cargo.toml Cargo.lock mix.exs README.md CHANGELOG.md LICENSE
           .formatter.exs) ++ Path.wildcard("checksum-*.exs")
    ]
  end
end
