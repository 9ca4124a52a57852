defmodule Barytherium.DefaultCallbackHandler do
  @moduledoc """
  An example of a callback process.

  It connects, sends CONNECT and then the given frames. It logs and acknowledges the frames that
  arrive.

      Barytherium.DefaultCallbackHandler.start_link(
        "localhost",
        61613,
        "/",
        [{"login", "guest"}, {"passcode", "guest"}, {"heart-beat", "5000,5000"}],
        [
          %Barytherium.Frame{
            command: :subscribe,
            headers: [{"id", "0"}, {"destination", "/queue/a"}, {"ack", "client"}]
          }
        ]
      )
  """
  use GenServer, restart: :temporary

  require Logger

  alias Barytherium.{Connection, Frame, Network, Secret}
  alias Barytherium.Network.Sender

  @doc """
  Connects to `host` and `port`.

    * `virtual_host` - the `host` header of CONNECT;
    * `connect_headers` - further headers of CONNECT;
    * `connected_frames` - frames to write when CONNECTED has arrived;
    * `opts` - options of `Barytherium.Network.start_link/4`;
    * `link_opts` - options of `GenServer.start_link/3`.
  """
  @spec start_link(
          Connection.host(),
          :inet.port_number(),
          String.t(),
          Frame.frame_headers(),
          [Frame.t()],
          [Connection.option()],
          GenServer.options()
        ) :: GenServer.on_start()
  def start_link(
        host,
        port,
        virtual_host,
        connect_headers \\ [],
        connected_frames \\ [],
        opts \\ [],
        link_opts \\ []
      ) do
    headers = [{"accept-version", "1.0,1.1,1.2"}, {"host", virtual_host} | connect_headers]

    state = %{
      host: host,
      port: port,
      # They may hold a passcode.
      connect_headers: Secret.new(headers),
      connected_frames: connected_frames,
      version: "1.0"
    }

    GenServer.start_link(__MODULE__, {state, opts}, link_opts)
  end

  @doc "A child specification. `args` are the arguments of `start_link/7`, in a tuple or a list."
  @spec child_spec(tuple() | list()) :: Supervisor.child_spec()
  def child_spec(args) do
    args = if is_tuple(args), do: Tuple.to_list(args), else: args
    %{super([]) | start: {__MODULE__, :start_child, [Secret.new(args)]}}
  end

  @doc false
  # A supervisor's reports show the arguments.
  @spec start_child(Secret.t(list())) :: GenServer.on_start()
  def start_child(args), do: apply(__MODULE__, :start_link, Secret.reveal(args))

  @impl true
  def init({%{host: host, port: port} = state, opts}) do
    {:ok, network_pid} = Network.start_link(self(), host, port, opts)
    {:ok, Map.put(state, :network_pid, network_pid)}
  end

  @impl true
  def handle_cast({:barytherium, :connect, {:ok, sender_pid}}, state) do
    Logger.info("Connected to #{inspect(state.host)}:#{state.port}")

    Sender.write(sender_pid, [
      %Frame{command: :connect, headers: Secret.reveal(state.connect_headers)}
    ])

    {:noreply, state}
  end

  def handle_cast({:barytherium, :connect, {:error, reason}}, state) do
    Logger.error("No connection to #{inspect(state.host)}:#{state.port}: #{reason}")
    {:stop, {:shutdown, reason}, state}
  end

  def handle_cast({:barytherium, :frames, {[%Frame{command: :connected} = frame], sender}}, state) do
    Logger.info("The server has accepted the connection")
    Sender.write(sender, state.connected_frames)
    {:noreply, %{state | version: Frame.version(frame)}}
  end

  def handle_cast({:barytherium, :frames, {frames, sender_pid}}, state) do
    handle_frame(frames, sender_pid, state.version)
    {:noreply, state}
  end

  def handle_cast({:barytherium, :disconnect, reason}, state) do
    Logger.error("Disconnected: #{reason}")
    {:stop, {:shutdown, reason}, state}
  end

  @doc """
  Logs a frame or a list of frames, and acknowledges messages.

  In STOMP 1.2 a message needs an acknowledgement if it has the header `ack`. In 1.0 and 1.1 a
  message does not tell, so every message is acknowledged. This does no harm.
  """
  @spec handle_frame(Frame.t() | [Frame.t()], pid(), Frame.version()) :: :ok
  def handle_frame(frames, sender_pid, version \\ "1.2")

  def handle_frame(frames, sender_pid, version) when is_list(frames),
    do: Enum.each(frames, &handle_frame(&1, sender_pid, version))

  def handle_frame(%Frame{} = frame, sender_pid, version) do
    Logger.info("Received #{inspect(frame)}")

    if Frame.acknowledgeable?(frame, version),
      do: Sender.write(sender_pid, [Frame.ack(frame, version)]),
      else: :ok
  end
end
