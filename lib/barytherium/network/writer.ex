defmodule Barytherium.Network.Writer do
  @moduledoc false
  # Writes to a socket. It is a process of its own for two reasons: before OTP 26 `:gen_tcp.send/2`
  # searches the caller's whole mailbox for the socket's answer, and on every version it blocks while
  # the peer does not read. This process has an empty mailbox, and only the sender waits for it.
  use GenServer

  alias Barytherium.Connection

  # Saves memory on an idle connection.
  @hibernate_after 1_000

  # Bytes of data that are given to the socket at once.
  @part 1024 * 1024

  @spec start_link(Connection.socket()) :: GenServer.on_start()
  def start_link(socket) do
    GenServer.start_link(__MODULE__, {self(), socket}, hibernate_after: @hibernate_after)
  end

  @doc "Writes `data`, then sends `{:written, :ok | {:error, reason}}` to the starting process."
  # The data are framed as the socket wants it, see `Connection.framing/1`.
  @spec write(pid(), iodata()) :: :ok
  def write(writer, data), do: GenServer.cast(writer, {:write, data})

  @doc "Writes a heart-beat, then sends the same message."
  @spec beat(pid()) :: :ok
  def beat(writer), do: GenServer.cast(writer, :beat)

  @doc "Writes what the native side owes the peer: an alert of TLS, for example. No message follows."
  @spec flush(pid()) :: :ok
  def flush(writer), do: GenServer.cast(writer, :flush)

  @doc "Closes the socket for writing, then replies `:ok` to `from`."
  @spec shutdown(pid(), GenServer.from()) :: :ok
  def shutdown(writer, from), do: GenServer.cast(writer, {:shutdown, from})

  @impl true
  def init(state), do: {:ok, state}

  @impl true
  def handle_cast({:write, data}, {sender, socket} = state) do
    # Nothing may come between the parts of a frame.
    written = with :ok <- Connection.send_owed(socket), do: data |> parts() |> send_parts(socket)
    send(sender, {:written, written})
    {:noreply, state}
  end

  # Between frames an EOL is a heart-beat.
  def handle_cast(:beat, {sender, socket} = state) do
    send(sender, {:written, Connection.send(socket, "\n")})
    {:noreply, state}
  end

  # Nobody waits for the result. The end of the connection is told by who reads.
  def handle_cast(:flush, {sender, socket} = state) do
    with {:error, reason} when reason != :closed <- Connection.flush(socket),
         do: send(sender, {:written, {:error, reason}})

    {:noreply, state}
  end

  def handle_cast({:shutdown, from}, {_sender, socket} = state) do
    Connection.shutdown(socket)
    GenServer.reply(from, :ok)
    {:noreply, state}
  end

  def handle_cast(_stray, state), do: {:noreply, state}

  # The time that a write may take counts for each part, so that a large frame does not have to be faster
  # than a small one.
  defp parts(data) do
    if IO.iodata_length(data) <= @part,
      do: [data],
      else: data |> List.flatten() |> Enum.flat_map(&cut/1) |> group([], 0)
  end

  # As many binaries as have the size of a part are given to the socket together.
  defp group([], group, _size), do: [Enum.reverse(group)]

  defp group([binary | rest], group, size) when size + byte_size(binary) <= @part,
    do: group(rest, [binary | group], size + byte_size(binary))

  defp group(binaries, group, _size), do: [Enum.reverse(group) | group(binaries, [], 0)]

  defp cut(<<part::binary-size(@part), rest::binary>>) when rest != "", do: [part | cut(rest)]
  defp cut(rest), do: [rest]

  defp send_parts([], _socket), do: :ok

  defp send_parts([part | parts], socket) do
    with :ok <- Connection.send_framed(socket, part), do: send_parts(parts, socket)
  end

  @impl true
  def handle_call(_stray, _from, state), do: {:reply, {:error, :unknown_call}, state}

  @impl true
  def handle_info(_stray, state), do: {:noreply, state}

  @doc false
  # The data may hold credentials.
  # A callback of GenServer since Elixir 1.17. OTP has called it before.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  def format_status(status), do: Map.replace(status, :message, "...")
end
