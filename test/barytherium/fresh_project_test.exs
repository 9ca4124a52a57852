defmodule Barytherium.FreshProjectTest do
  # As for an existing user, one line of mix.exs has to be enough.
  use ExUnit.Case, async: false

  # It waits for other programs most of the time, see `script/test`.
  @moduletag :programs
  @moduletag timeout: 180_000
  @sources File.cwd!()
  @fixtures Path.join(@sources, "test/fixtures")
  @expected "received enough\ndisconnected once\n"

  setup do
    directory = Barytherium.Directory.path()

    on_exit(fn -> File.rm_rf!(directory) end)
    %{directory: directory}
  end

  test "a project with a path dependency runs, and so does its release", %{directory: directory} do
    make_project(directory, "")
    assert run!("mix", ["run", "-e", "FeedConsumer.Main.run()"], directory) =~ @expected

    run!("mix", ["release", "--quiet"], directory)
    release = Path.join(directory, "_build/prod/rel/feed/bin/feed")
    assert run!(release, ["eval", "FeedConsumer.Main.run()"], directory) =~ @expected
  end

  test "compiling again compiles nothing", %{directory: directory} do
    make_project(directory, "")
    run!("mix", ["compile"], directory)

    library =
      Path.join(directory, "_build/prod/lib/barytherium/priv/native/libbarytherium_nif.so")

    before = File.stat!(library)
    assert run!("mix", ["compile"], directory) == ""
    assert File.stat!(library) == before
  end

  test "an application in an umbrella project runs", %{directory: directory} do
    File.mkdir_p!(Path.join(directory, "apps"))

    File.write!(Path.join(directory, "mix.exs"), """
    defmodule Umbrella.MixProject do
      use Mix.Project
      def project, do: [apps_path: "apps", deps: []]
    end
    """)

    make_project(Path.join(directory, "apps/feed"), """
    build_path: "../../_build", deps_path: "../../deps", lockfile: "../../mix.lock",
    """)

    assert run!("mix", ["run", "-e", "FeedConsumer.Main.run()"], directory) =~ @expected
  end

  # Stops and starts the broker while an application runs whose supervisor has the default limits.
  @survival """
  alias Barytherium.TestBroker
  Logger.configure(level: :none)
  port = Application.fetch_env!(:feed, :port)
  await = fn await, condition -> condition.() || (Process.sleep(20) && await.(await, condition)) end
  subscribed = fn broker -> fn -> :sys.get_state(broker).session.queues.subscriptions != %{} end end
  {:ok, broker} = TestBroker.start_link(port: port)
  await.(await, subscribed.(broker))
  GenServer.stop(broker)
  Process.sleep(3_000)
  {:ok, broker} = TestBroker.start_link(port: port)
  await.(await, subscribed.(broker))
  running = for {application, _, _} <- Application.started_applications(), do: application
  IO.puts("still running: \#{:feed in running}")
  """

  test "an application with the README's consumer survives a restart of the broker", %{
    directory: directory
  } do
    listener = Barytherium.Peer.listen(:tcp)
    port = Barytherium.Peer.port(listener)
    Barytherium.Peer.close(listener)
    make_project(directory, "")

    [_all, source] = Regex.run(~r/```elixir\n(defmodule Orders.*?)```/s, File.read!("README.md"))

    File.write!(Path.join(directory, "lib/consumer.ex"), source)

    File.write!(Path.join(directory, "lib/application.ex"), """
    defmodule Feed.Application do
      use Application

      def start(_type, _args) do
        url = "stomp://127.0.0.1:\#{Application.fetch_env!(:feed, :port)}"
        child = {Orders, url: url}
        Supervisor.start_link([child], strategy: :one_for_one)
      end
    end
    """)

    mix = Path.join(directory, "mix.exs")
    application = "[extra_applications: [:logger]]"
    more = "[extra_applications: [:logger], mod: {Feed.Application, []}, env: [port: #{port}]]"
    File.write!(mix, mix |> File.read!() |> String.replace(application, more))
    assert run!("mix", ["run", "-e", @survival], directory) =~ "still running: true"
  end

  test "without cargo the error says what is missing", %{directory: directory} do
    make_project(directory, "")
    environment = Barytherium.WithoutCargo.environment(directory)
    {output, status} = run("mix", ["compile"], directory, environment)
    assert status != 0
    assert output =~ "Barytherium needs cargo (Rust 1.91.0 or later), and there is none."
  end

  defp make_project(directory, project_options) do
    File.mkdir_p!(Path.join(directory, "lib"))

    for file <- File.ls!(@fixtures) do
      File.cp!(Path.join(@fixtures, file), Path.join([directory, "lib", file]))
    end

    File.write!(Path.join(directory, "mix.exs"), """
    defmodule Feed.MixProject do
      use Mix.Project

      def project do
        [
          app: :feed,
          version: "0.1.0",
          #{project_options}
          deps: [{:barytherium, path: #{inspect(@sources)}}]
        ]
      end

      def application, do: [extra_applications: [:logger]]
    end
    """)
  end

  defp run!(command, args, directory) do
    {output, status} = run(command, args, directory, [])
    assert status == 0, output
    output
  end

  # With the same target directory the native library does not have to be built again.
  defp run(command, args, directory, environment) do
    target = Path.expand("../barytherium_cargo", Mix.Project.build_path())
    target = System.get_env("CARGO_TARGET_DIR", target)
    environment = [{"MIX_ENV", "prod"}, {"CARGO_TARGET_DIR", target} | environment]
    # A command that hangs must not outlive the test.
    args = ["60", command | args]
    System.cmd("timeout", args, cd: directory, env: environment, stderr_to_stdout: true)
  end
end
