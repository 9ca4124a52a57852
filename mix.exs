# Mix needs this compiler before it compiles anything, also when this project is a dependency.
Code.require_file("lib/mix/tasks/compile.barytherium_native.exs", __DIR__)

defmodule Barytherium.MixProject do
  use Mix.Project

  @version "1.0.0"
  # The address of the repository, whose releases have the native libraries: "https://...". Until there is one, there is
  # no package, and the HTML documentation links to neither. CONTRIBUTING.md has the first release.
  @source_url nil

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
      package: @source_url && package(),
      source_url: @source_url,
      releases: releases(),
      name: "Barytherium",
      docs: &docs/0,
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
        steps: [:assemble, &with_libcrypto/1, :tar]
      ]
    ]
  end

  # Erlang's `crypto` needs OpenSSL's library, which a bare Debian does not have. All other libraries that
  # Erlang needs are there.
  defp with_libcrypto(release) do
    library =
      Path.join(release.path, "lib/crypto-*/priv/lib/crypto.so") |> Path.wildcard() |> hd()

    with ldd when ldd != nil <- System.find_executable("ldd"),
         {output, 0} <- System.cmd(ldd, [library]),
         [[name, path]] <-
           Regex.scan(~r/(libcrypto\S+) => (\S+)/, output, capture: :all_but_first) do
      File.cp!(path, Path.join(release.path, "lib/#{name}"))

      # Its licence asks for this. Where it is elsewhere, whoever passes the release on has to add it.
      for text <- Path.wildcard("/usr/share/doc/libssl3*/copyright") |> Enum.take(1),
          do: File.cp!(text, Path.join(release.path, "lib/libcrypto.copyright"))
    end

    release
  end

  defp docs do
    [
      main: "readme",
      source_ref: "v#{@version}",
      skip_code_autolink_to: ["Barytherium.Native", "Barytherium.Network.Parser"],
      # Types whose modules are not documented, because their fields are private.
      skip_undefined_reference_warnings_on: [
        "Barytherium.Client.Transaction",
        "Barytherium.Connection"
      ],
      assets: %{"guides/assets" => "guides/assets"},
      extras: [
        {"README.md", title: "Barytherium"},
        "guides/getting-started.md",
        "guides/installation.md",
        {"guides/migrating.md", title: "Migrating"},
        {"guides/from-callbacks-to-consumer.md", title: "Callbacks to consumers"},
        {"examples/README.md", filename: "examples", title: "Examples"},
        {"guides/reliability.md", title: "Reliability"},
        {"guides/brokers.md", title: "What brokers do"},
        "guides/patterns.md",
        "guides/tls.md",
        {"guides/websocket.md", title: "WebSockets and proxies"},
        {"guides/darwin.md", title: "A rail feed"},
        "guides/scaling.md",
        "guides/operations.md",
        "guides/options.md",
        "guides/network.md",
        {"integrations/off_broadway_barytherium/README.md",
         filename: "broadway", title: "Broadway"},
        {"integrations/telemetry/README.md", filename: "metrics", title: "Metrics"},
        "guides/performance.md",
        "guides/conformance.md",
        "guides/results.md",
        {"native/README.md", filename: "native", title: "The native side"},
        "guides/internals.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md"
      ],
      groups_for_extras: [
        Begin: ~r/getting-started|installation|migrating|from-callbacks|examples/,
        "Run it":
          ~r/reliability|patterns|brokers|tls|websocket|darwin|scaling|operations|options|network|off_broadway|integrations.telemetry/,
        "Know it": ~r/performance|conformance|results|native|internals/,
        Project: ~r/CHANGELOG|CONTRIBUTING|SECURITY/
      ],
      groups_for_modules: [
        "Consumers and clients": [
          Barytherium.Client,
          Barytherium.Client.Transaction,
          Barytherium.Consumer,
          Barytherium.Error
        ],
        "Messages of a connection": [
          Barytherium.Connection,
          Barytherium.Frame,
          Barytherium.Frame.ValueEncoding,
          Barytherium.Network,
          Barytherium.Network.Receiver,
          Barytherium.Network.Sender,
          Barytherium.ParseError,
          Barytherium.DefaultCallbackHandler
        ],
        "Watching and testing": [
          Barytherium.Histogram,
          Barytherium.Recording,
          Barytherium.Telemetry,
          Barytherium.TestBroker
        ]
      ]
    ]
  end

  defp package do
    [
      # `barytherium` is the package that this one replaces.
      name: "barytherium_native",
      licenses: ["MIT"],
      exclude_patterns: [~r"^native/[^/]+/(fuzz|target)/"],
      links: %{"GitHub" => @source_url, "Changelog" => "#{@source_url}/blob/main/CHANGELOG.md"},
      # Only a package has the checksum file: `script/package` makes it of a release's archives.
      files:
        ~w(lib native guides .cargo Cargo.toml Cargo.lock mix.exs README.md CHANGELOG.md LICENSE
           .formatter.exs) ++ Path.wildcard("checksum-*.exs")
    ]
  end
end
