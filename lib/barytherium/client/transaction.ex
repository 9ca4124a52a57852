defmodule Barytherium.Client.Transaction do
  @moduledoc """
  A transaction of `Barytherium.Client.transaction/3`. `Barytherium.Client.publish/4`, `ack/2` and
  `nack/3` take it in place of the client.
  """

  alias Barytherium.Client.Session
  alias Barytherium.Frame
  alias Barytherium.Network.Sender

  @enforce_keys [:client, :session, :id, :timeout]
  defstruct [:client, :session, :id, :timeout]

  @typedoc "The fields are private."
  @type t :: %__MODULE__{
          client: GenServer.server(),
          session: Session.t(),
          id: String.t(),
          timeout: non_neg_integer()
        }

  @doc false
  # Writes BEGIN.
  @spec begin(GenServer.server(), Session.t(), non_neg_integer()) :: t()
  def begin(client, session, timeout) do
    id = "tx-#{System.unique_integer([:positive])}"
    transaction = %__MODULE__{client: client, session: session, id: id, timeout: timeout}
    Sender.write(session.sender, [frame(transaction, :begin)])
    transaction
  end

  @doc false
  # Calls the function. If it fails, writes ABORT.
  @spec run(t(), (t() -> result)) :: result when result: term()
  def run(%__MODULE__{session: session} = transaction, fun) do
    fun.(transaction)
  catch
    kind, reason ->
      Sender.write(session.sender, [frame(transaction, :abort)])
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  @doc false
  @spec frame(t(), :begin | :commit | :abort) :: Frame.t()
  def frame(transaction, command), do: %Frame{command: command, headers: [header(transaction)]}

  @doc false
  @spec header(t()) :: {String.t(), String.t()}
  def header(%__MODULE__{id: id}), do: {"transaction", id}

  @doc false
  # Always on the connection on which it was begun.
  @spec write(t(), [Frame.t()]) :: :ok | {:error, atom()}
  def write(%__MODULE__{session: session, timeout: timeout}, frames),
    do: Sender.write_within(session.sender, frames, timeout)
end
