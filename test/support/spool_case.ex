defmodule Barytherium.SpoolCase do
  @moduledoc "Clients with a spool in a directory of the test, and scripted brokers."
  use ExUnit.CaseTemplate

  import Barytherium.ClientCase

  alias Barytherium.{Client, Directory, Peer}

  using do
    quote do
      use Barytherium.ClientCase
      import Barytherium.SpoolCase
    end
  end

  setup do
    directory = Directory.path()
    on_exit(fn -> File.rm_rf!(directory) end)
    %{directory: directory}
  end

  @doc "A URL at which nothing listens."
  def nowhere do
    {listener, url} = broker()
    Peer.close(listener)
    url
  end

  @doc "A client as a supervisor has it: its end does not end the test."
  def client(directory, opts \\ []) do
    opts = Keyword.put_new_lazy(opts, :url, &nowhere/0)

    start_supervised!({Client, [spool: directory, backoff: {10, 20}] ++ opts}, restart: :temporary)
  end

  @doc "Stops the client."
  def stop, do: stop_supervised!(Client)

  def kill(client) do
    monitor = Process.monitor(client)
    Process.exit(client, :kill)
    assert_receive {:DOWN, ^monitor, :process, _client, :killed}
  end

  @doc "Publishes bodies, and returns the references."
  def publish(client, bodies) do
    for body <- bodies do
      {:ok, reference} = Client.publish_async(client, "/queue/a", body)
      reference
    end
  end

  @doc "Confirms so many messages, and returns their bodies."
  def confirmed(peer, count), do: for(_n <- 1..count//1, do: elem(confirm(peer, :send), 1))

  def names(range), do: Enum.map(range, &"#{&1}")

  @doc "The bodies of so many messages, which is all that a new client has in the directory."
  def sent(directory, count) do
    {listener, url} = broker()
    client = client(directory, url: url)
    peer = accept_connected(listener)
    bodies = confirmed(peer, count)
    assert Client.flush(client) == :ok
    # The client's end waits for nobody then.
    Peer.close(peer)
    bodies
  end

  @doc "Arguments of a VM that is to find this library."
  def code_path, do: ["-pa", Path.join(Mix.Project.app_path(), "ebin")]

  @doc "Changes a bit of a file. From its end on, if `at` is negative."
  def damage(path, at) do
    bytes = File.read!(path)
    at = if at < 0, do: byte_size(bytes) + at, else: at
    flipped = Bitwise.bxor(:binary.at(bytes, at), 1)
    rest = binary_part(bytes, at + 1, byte_size(bytes) - at - 1)
    File.write!(path, [binary_part(bytes, 0, at), flipped, rest])
  end

  @doc "The files of the spool."
  def segments(directory), do: Path.wildcard(Path.join(directory, "*.spool"))

  @doc "What the client knows of its spool."
  def spool(client), do: elem(:sys.get_state(client), 1).spool
end
