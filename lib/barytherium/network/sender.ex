defmodule Barytherium.Network.Sender do
  @moduledoc """
  Writes frames to a connection, and the client's heart-beats.

  `Barytherium.Network` starts it and passes its pid around: with
  `{:barytherium, :connect, {:ok, sender_pid}}` and with every list of frames.

  When a write fails, or takes longer than the option `send_timeout`, the connection ends with
  `{:barytherium, :disconnect, reason}`.
  """
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.{Connection, Frame}
  alias Barytherium.Network.HeartBeat

  # An end of line, which is a heart-beat between frames.
  @beat "\n"

  @doc false
  @spec start_link(pid(), Connection.socket()) :: GenServer.on_start()
  def start_link(network_pid, socket),
    do: GenServer.start_link(__MODULE__, %{network_pid: network_pid, socket: socket})

  @doc """
  Writes `frames`, in one send.

  Returns at once. Between CONNECT and CONNECTED nothing is written: what is given here waits until
  the version is known by which its headers are escaped, and after a refused login for ever. A
  sender that is gone loses them, as a connection that ends does. Raises
  `ArgumentError` for a frame that cannot be written, see `Barytherium.Frame.format/2`. A frame
  that only STOMP 1.2 could escape is, in an older version, logged and dropped, with those that
  were to be written with it.
  """
  @spec write(pid(), [Frame.t()]) :: :ok
  def write(sender_pid, frames) do
    # In the caller, whose mistake it would be, and not in the process that others write with too.
    Enum.each(frames, &Frame.format/1)
    GenServer.cast(sender_pid, {:write, frames})
  end

  @doc false
  # The answer to the CONNECTED frame: `{hb_send, hb_recv}`.
  @spec connected(pid(), Frame.t()) :: HeartBeat.pair()
  def connected(sender_pid, frame), do: GenServer.call(sender_pid, {:connected, frame}, :infinity)

  @impl true
  def init(state) do
    # A link alone does not tell of a network that was stopped in the ordinary way.
    Process.monitor(state.network_pid)
    {:ok, Map.merge(state, %{version: nil, connect_headers: [], held: nil, idle: :infinity})}
  end

  @impl true
  def handle_cast({:write, frames}, %{version: nil} = state) do
    frames
    |> Enum.split_while(&(&1.command not in [:connect, :stomp]))
    |> write_or_hold(state)
    |> noreply()
  end

  def handle_cast({:write, frames}, state), do: frames |> write_frames(state) |> noreply()

  @impl true
  def handle_call({:connected, %Frame{headers: headers}}, _from, state) do
    {hb_send, _hb_recv} = agreed = HeartBeat.agree(state.connect_headers, headers)
    held = Enum.reverse(state.held || [])
    state = %{state | version: version(headers), held: nil, idle: idle(hb_send)}
    {:reply, agreed, state, {:continue, {:write, held}}}
  end

  @impl true
  def handle_continue({:write, held}, state),
    do: held |> Enum.reduce(state, &write_frames/2) |> noreply()

  # Nothing was written for so long.
  @impl true
  def handle_info(:timeout, state), do: @beat |> write_data(state) |> noreply()

  def handle_info({:DOWN, _monitor, :process, _network, _reason}, state),
    do: {:stop, :shutdown, state}

  defp noreply(state), do: {:noreply, state, state.idle}

  # What is written after CONNECT and before the version is known waits for it: how headers are
  # escaped depends on it, and the callback process may have seen CONNECTED sooner than this one.
  defp write_or_hold({frames, []}, %{held: nil} = state), do: write_frames(frames, state)
  defp write_or_hold({frames, []}, state), do: hold(frames, state)

  defp write_or_hold({before, [connect | rest]}, state) do
    state = write_frames(before ++ [connect], state)
    hold(rest, %{state | connect_headers: connect.headers, held: state.held || []})
  end

  defp hold([], state), do: state
  defp hold(frames, state), do: %{state | held: [frames | state.held]}

  defp write_frames(frames, state) do
    frames |> Enum.map(&Frame.format(&1, state.version)) |> write_data(state)
  rescue
    # What `write/2` let pass, because 1.2 can escape it, and the negotiated version cannot.
    error in ArgumentError ->
      Logger.error("Barytherium dropped a write: " <> Exception.message(error))
      state
  end

  defp write_data(_data, %{socket: nil} = state), do: state

  defp write_data(data, state) do
    case Connection.send(state.socket, data) do
      :ok -> state
      {:error, reason} -> disconnect(reason, state)
    end
  end

  # What is written from now on is lost. The network ends this process when it has heard.
  defp disconnect(reason, state) do
    reason = if is_atom(reason), do: reason, else: :closed
    GenServer.cast(state.network_pid, {:barytherium, :send_failed, reason})
    %{state | socket: nil, idle: :infinity}
  end

  defp version(headers) do
    case List.keyfind(headers, "version", 0) do
      nil -> "1.0"
      {_name, version} when version in ["1.0", "1.1"] -> version
      {_name, _newer} -> "1.2"
    end
  end

  # We promised something every `hb_send` ms. Three quarters leave time for being late.
  defp idle(0), do: :infinity
  defp idle(hb_send), do: max(div(hb_send * 3, 4), 1)
end
