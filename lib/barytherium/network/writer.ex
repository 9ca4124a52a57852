defmodule Barytherium.Network.Writer do
  @moduledoc false
  # Writes to a socket, in a process of its own. Before OTP 26 `:gen_tcp.send/2` searches the whole
  # mailbox of its caller for the socket's answer, and on every version it blocks while the peer does
  # not read. Here the mailbox is empty, and nobody else is kept waiting.
  use GenServer

  alias Barytherium.Connection

  # An idle connection keeps no more of this process than it has to.
  @hibernate_after 1_000

  @spec start_link(Connection.socket()) :: GenServer.on_start()
  def start_link(socket) do
    GenServer.start_link(__MODULE__, {self(), socket}, hibernate_after: @hibernate_after)
  end

  @doc "Writes `data`, and then sends `{:written, :ok | {:error, reason}}` to whoever started this."
  @spec write(pid(), iodata()) :: :ok
  def write(writer, data), do: GenServer.cast(writer, {:write, data})

  @impl true
  def init(state), do: {:ok, state}

  @impl true
  def handle_cast({:write, data}, {sender, socket} = state) do
    send(sender, {:written, Connection.send(socket, data)})
    {:noreply, state}
  end

  @impl true
  def handle_info(_stray, state), do: {:noreply, state}

  @doc false
  # What is being written may hold credentials.
  def format_status(status), do: Map.replace(status, :message, "...")
end
