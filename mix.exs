# Mix needs this compiler before it compiles anything, also when this project is a dependency.
Code.require_file("lib/mix/tasks/compile.barytherium_native.exs", __DIR__)

defmodule Barytherium.MixProject do
  use Mix.Project

  @version "1.0.0"

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
      deps: []
    ]
  end

  def application do
    [extra_applications: [:logger, :ssl]]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  defp package do
    [
      licenses: ["MIT"],
      files: ~w(lib native guides Cargo.toml Cargo.lock mix.exs README.md CHANGELOG.md LICENSE
           .formatter.exs)
    ]
  end
end
