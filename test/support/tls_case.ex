defmodule Barytherium.TlsCase do
  @moduledoc "For tests in the role of the callback process, with a STOMP server over TLS."
  use ExUnit.CaseTemplate

  import ExUnit.Assertions

  alias Barytherium.{Certificates, Frame, Network}

  using do
    quote do
      import Barytherium.TlsCase
      alias Barytherium.{Certificates, Connection, Frame, Network, Peer}
      alias Barytherium.Network.Sender

      @moduletag capture_log: true
    end
  end

  setup_all do
    %{certificates: Certificates.make(["localhost", {127, 0, 0, 1}])}
  end

  @doc "Starts a server that sends CONNECTED after each handshake. Returns its port."
  def server(options) do
    test = self()

    spawn_link(fn ->
      mode = [mode: :binary, active: false, reuseaddr: true, ip: {127, 0, 0, 1}, log_level: :none]
      {:ok, listener} = :ssl.listen(0, mode ++ options)
      {:ok, {_address, port}} = :ssl.sockname(listener)
      send(test, {:port, port})
      spawn_link(fn -> serve(listener) end)
      # The listener closes with its owner.
      Process.sleep(:infinity)
    end)

    receive do: ({:port, port} -> port)
  end

  # Each connection has a process of its own.
  defp serve(listener) do
    with {:ok, socket} <- :ssl.transport_accept(listener) do
      spawn_link(fn -> serve(listener) end)
      :ssl.handshake(socket, 5_000) |> greet()
    end
  end

  defp greet({:ok, socket}) do
    :ssl.send(socket, "CONNECTED\nversion:1.2\n\n\0")
    Process.sleep(:infinity)
  end

  defp greet(_refused), do: :ok

  def connect(host, port, opts) do
    {:ok, network} = Network.start_link(self(), host, port, [secure: true] ++ opts)
    network
  end

  @doc "Waits for CONNECTED. Returns the sender."
  def assert_connected do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    sender
  end

  def assert_refused(reason) do
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, ^reason}}}
  end

  @doc "A set-up: a directory for files, which is removed when the test ends."
  def directory(_context), do: %{directory: Barytherium.Directory.make!()}
end
