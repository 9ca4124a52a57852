defmodule Barytherium.Network.Connector do
  @moduledoc false
  # Connects in a process of its own, so that the network can answer calls meanwhile. The network
  # gets `{:connector, pid, {:ok, socket} | {:error, reason}}` and then owns the socket.

  require Logger

  alias Barytherium.Connection

  @doc "Starts a linked process that connects. After `timeout` the caller gets `{:connect_timeout, pid}`."
  @spec start_link(Connection.host(), :inet.port_number(), keyword(), timeout()) :: pid()
  def start_link(host, port, opts, timeout) do
    network = self()
    connector = spawn_link(fn -> connect(network, host, port, opts) end)

    if timeout != :infinity,
      do: Process.send_after(self(), {:connect_timeout, connector}, timeout)

    connector
  end

  defp connect(network, host, port, opts) do
    result = Connection.connect(host, port, opts)
    with {:ok, socket} <- result, do: Connection.give(socket, network)
    send(network, {:connector, self(), result})
  catch
    # `:gen_tcp` and `:ssl` raise or exit for values that they cannot use. A value may be secret, so
    # only the names are logged.
    _kind, _reason ->
      names = Enum.map(opts, &if(is_tuple(&1), do: elem(&1, 0), else: &1))
      Logger.error("one of the options cannot be used as it is: #{inspect(names)}")
      send(network, {:connector, self(), {:error, :options}})
  end

  @doc "Gives up connecting. `nil` stands for a process that has done its work."
  @spec stop(nil | pid()) :: :ok
  def stop(nil), do: :ok

  def stop(connector) do
    monitor = Process.monitor(connector)
    Process.unlink(connector)
    Process.exit(connector, :kill)
    receive do: ({:DOWN, ^monitor, :process, ^connector, _reason} -> :ok)

    # It may have connected at the last moment.
    receive do
      {:connector, ^connector, {:ok, socket}} -> Connection.abandon(socket)
      {:connector, ^connector, _error} -> :ok
    after
      0 -> :ok
    end
  end
end
