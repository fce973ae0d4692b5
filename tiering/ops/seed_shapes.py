"""What seeded documents look like: each collection's shape, mixed types and drift as the platform writes them.

Every function makes one document from dice of its own, so that it depends on nothing made beside it. Fields are
missing, numbers come as text, integers stand among doubles: moving has to survive all of it.
Source: the platform's collections; research_reports are few and large, posts many and small.
Does not: encode or load them (seed_documents.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

Document = dict[str, Any]

NAMES = ("贵州茅台", "宁德时代", "招商银行", "比亚迪", "中国平安", "腾讯控股", "Apple", "NVIDIA")
WORDS = (
    *("公司", "公告", "业绩", "增长", "市场", "分析师", "预计", "利润", "同比", "资金", "流入", "板块", "政策", "影响"),
    *("风险", "估值", "回购", "股东", "产能", "订单", "earnings", "guidance", "beat", "margin", "cash flow", "🚀"),
)
ACTIONS = ("买入", "持有", "卖出")
SECTIONS = ("market_report", "news_report", "fundamentals_report", "investment_plan", "final_trade_decision")
DEPTHS = ("快速", "标准", "深度")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a document is made of: its dice, its time, its number in its unit, and who and what there is."""

    dice: Random
    at: datetime
    number: int
    symbols: int
    users: int

    @property
    def symbol(self) -> str:
        """One of the symbols."""
        return f"S{self.dice.randrange(self.symbols):05d}"

    @property
    def user(self) -> str:
        """One of the users."""
        return user_name(self.dice.randrange(self.users))

    def text(self, length: int) -> str:
        """Write some sentences, about so many characters."""
        words = self.dice.choices(WORDS, k=length // 3 + 1)
        return "，".join(words[:12]) + "。" + "".join(words[12:])

    def name(self) -> str:
        """Name a company."""
        return self.dice.choice(NAMES)

    def chance(self, share: float) -> bool:
        """Throw for something that is so in a share of all documents."""
        return self.dice.random() < share


def user_name(number: int) -> str:
    """Name a seeded user."""
    return f"user-{number:05d}"


def news(scene: Scene) -> Document:
    """An article of 1 to 4 KB; market news names no symbol."""
    scores: list[float | Decimal] = [round(scene.dice.uniform(-1, 1), 3), 0, 1, Decimal("0.25")]
    score = scene.dice.choice(scores)
    found: Document = {
        "symbol": None if scene.chance(0.1) else scene.symbol,
        "title": f"{scene.name()}：{scene.text(40)}",
        "content": scene.text(scene.dice.randrange(350, 1200)),
        "summary": scene.text(100),
        "url": f"https://news.example/{scene.at:%Y/%m/%d}/{scene.dice.randrange(10**9)}.html",
        "source": scene.dice.choice(("财联社", "新浪财经", "Reuters")),
        "publish_time": scene.at,
        "category": scene.dice.choice(("company_announcement", "policy_news", "general")),
        "sentiment": "positive" if score > 0 else "negative" if score < 0 else "neutral",
        # The crawler of the early days wrote text.
        "sentiment_score": str(score) if scene.number % 13 == 5 else score,
        "keywords": scene.dice.sample(WORDS, 3),
        "data_source": scene.dice.choice(("akshare", "tushare", "market_news")),
        "created_at": scene.at + timedelta(minutes=scene.dice.randrange(120)),
        "version": 1,
    }
    if scene.number % 50 == 7:
        # A date as text is no date: such a document belongs to no unit, never moves, and is reported.
        found["publish_time"] = scene.at.strftime("%Y-%m-%d %H:%M:%S")
    if scene.chance(0.2):
        del found["sentiment_score"], found["sentiment"]
    return found


def social_post(scene: Scene) -> Document:
    """A post: its author and what others did with it are sub-documents."""
    likes: Any = scene.dice.choice([scene.dice.randrange(5000), float(scene.dice.randrange(100)), 2**33])
    return {
        "message_id": f"m-{scene.at:%Y%m%d%H}-{scene.number}-{scene.dice.randrange(10**6)}",
        "platform": scene.dice.choice(("weibo", "xueqiu", "twitter")),
        "message_type": "post",
        "symbol": scene.symbol,
        "content": scene.text(scene.dice.randrange(20, 280)),
        "author": {
            "user_id": scene.user,
            "username": f"股民{scene.dice.randrange(10**5)}",
            "verified": scene.chance(0.2),
            "follower_count": scene.dice.randrange(10**6),
            "influence_score": round(scene.dice.random(), 2),
        },
        "engagement": {
            # As the site shows it: eleven thousand.
            "likes": "1.1万" if scene.number % 17 == 3 else likes,
            "shares": scene.dice.randrange(500),
            "comments": scene.dice.randrange(500),
            "engagement_rate": round(scene.dice.random() / 10, 4),
        },
        "publish_time": scene.at,
        "sentiment": scene.dice.choice(("positive", "negative", "neutral")),
        "sentiment_score": round(scene.dice.uniform(-1, 1), 2),
        "hashtags": scene.dice.sample(WORDS, 2),
        "language": "zh-CN",
    }


def social_sentiment(scene: Scene) -> Document:
    """What a platform thinks of a symbol in a quarter of an hour."""
    return {
        "symbol": scene.symbol,
        "platform": scene.dice.choice(("weibo", "xueqiu")),
        "ts": scene.at,
        "score": scene.dice.choice([round(scene.dice.uniform(-1, 1), 4), -1, 0]),
        "post_count": scene.dice.randrange(400),
        "distribution": {"positive": scene.dice.random(), "negative": scene.dice.random()},
    }


def analysis_session(scene: Scene) -> Document:
    """A session of the analysts: still running ones have no end."""
    is_done = scene.chance(0.8)
    progress: Any = 100 if is_done else round(scene.dice.uniform(0, 99), 1)
    found: Document = {
        "session_id": f"session-{scene.at:%Y%m%d}-{scene.number:04d}",
        "user_id": scene.user,
        "symbol": scene.symbol,
        "status": "completed" if is_done else "processing",
        "progress": progress,
        "parameters": {"research_depth": scene.dice.choice(DEPTHS), "analysts": ["market", "news", "fundamentals"]},
        "created_at": scene.at,
    }
    return found | ({"completed_at": scene.at + timedelta(minutes=7)} if is_done else {})


def analysis_result(scene: Scene) -> Document:
    """A result: the decision is a sub-document, and its target price has been of every type."""
    price = round(scene.dice.uniform(5, 500), 2)
    targets: tuple[Any, ...] = (price, int(price), Decimal(f"{price:.2f}"), None, f"{price}元")
    return {
        "analysis_id": f"{scene.symbol}_{scene.at:%Y%m%d_%H%M%S}",
        "user_id": scene.user,
        "symbol": scene.symbol,
        "stock_name": scene.name(),
        "market_type": scene.dice.choice(("A股", "港股", "美股")),
        "created_at": scene.at,
        "decision": {
            "action": scene.dice.choice(ACTIONS),
            "confidence": scene.dice.choice([round(scene.dice.random(), 2), 1, 0]),
            "risk_score": round(scene.dice.random(), 2),
            "target_price": targets[scene.number % len(targets)],
            "reasoning": scene.text(300),
        },
        "summary": scene.text(400),
        "tokens_used": scene.dice.randrange(200_000),
        "performance_metrics": {"seconds": round(scene.dice.uniform(20, 400), 1), "calls": scene.dice.randrange(90)},
    }


def research_report(scene: Scene) -> Document:
    """A report of 20 to 80 KB: sections of Markdown."""
    size = scene.dice.randrange(6_000, 24_000) // len(SECTIONS)
    return {
        "report_id": f"report-{scene.at:%Y%m%d}-{scene.number:04d}",
        "user_id": scene.user,
        "symbol": scene.symbol,
        "title": f"{scene.name()}（{scene.symbol}）深度研究",
        "created_at": scene.at,
        "analysts": ["market", "fundamentals", "news"],
        # A level since the last version, a word before.
        "research_depth": 3 if scene.chance(0.3) else scene.dice.choice(DEPTHS),
        "reports": {name: f"# {name}\n\n{scene.text(size)}" for name in SECTIONS},
        "tokens_used": scene.dice.randrange(200_000),
    }


def trading_signal(scene: Scene) -> Document:
    """A signal; prices keep the type of the feed they came from."""
    prices: tuple[Any, ...] = (Decimal("12.3400"), 12.34, 12, "12.34", {"low": 12.0, "high": 12.5})
    return {
        "symbol": scene.symbol,
        "action": scene.dice.choice(ACTIONS),
        "strength": scene.dice.choice([round(scene.dice.random(), 3), 1]),
        "price": prices[scene.number % len(prices)],
        "strategy": scene.dice.choice(("macd_cross", "mean_reversion", "新闻驱动")),
        "created_at": scene.at,
    }


SHAPES: dict[str, tuple[Callable[[Scene], Document], float]] = {
    "news": (news, 0.5),
    "social_posts": (social_post, 1.0),
    "social_sentiment": (social_sentiment, 0.5),
    "analysis_sessions": (analysis_session, 0.2),
    "analysis_results": (analysis_result, 0.2),
    "research_reports": (research_report, 0.05),
    "trading_signals": (trading_signal, 0.5),
}
"""Per collection: its shape, and how many documents a unit gets for each symbol."""
